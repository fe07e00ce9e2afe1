# The public names and where they live: type checkers and editors read this file, and
# `__init__.py` imports from it lazily. Only `from .module import name` is understood.

from .errors import (
    CheckpointError,
    DnError,
    ImageFileError,
    RegistryError,
    UnknownModelError,
)
from .inference.denoise import denoise, denoise_steps, plan_denoise
from .inference.model import Model, engine_name, load_model
from .inference.plan import DenoisePlan
from .inference.planes import blend
from .inference.run import Progress
from .models.registry import model_names
from .training.events import TrainingEvent
from .training.finetuning import finetune
from .training.stages import train

__version__: str

__all__ = [
    "CheckpointError",
    "DenoisePlan",
    "DnError",
    "ImageFileError",
    "Model",
    "Progress",
    "RegistryError",
    "TrainingEvent",
    "UnknownModelError",
    "__version__",
    "blend",
    "denoise",
    "denoise_steps",
    "engine_name",
    "finetune",
    "load_model",
    "model_names",
    "plan_denoise",
    "train",
]
