# The public names and where they live: type checkers and editors read this file, and
# `__init__.py` imports from it lazily. Only `from .module import name` is understood.

from .data.clean_images import CleanImageDataset, SkippedFile, load_clean_images
from .data.patches import Preview
from .data.scenes import Scene
from .data.user_images import UserImages
from .events import TrainingEvent
from .finetuning import finetune, finetune_steps, images_from
from .phantom_files import write_phantoms
from .phantoms import phantom, phantom_kinds
from .process_group import ProcessGroup
from .recipes import Phase, Recipe, load_recipe, recipe_descriptions, recipe_names
from .stages import train, train_stages

__all__ = [
    "CleanImageDataset",
    "Phase",
    "Preview",
    "ProcessGroup",
    "Recipe",
    "Scene",
    "SkippedFile",
    "TrainingEvent",
    "UserImages",
    "finetune",
    "finetune_steps",
    "images_from",
    "load_clean_images",
    "load_recipe",
    "phantom",
    "phantom_kinds",
    "recipe_descriptions",
    "recipe_names",
    "train",
    "train_stages",
    "write_phantoms",
]
