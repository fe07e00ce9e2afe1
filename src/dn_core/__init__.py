"""Image denoising by small residual networks, after *DN-ResNet* (Ren, El-khamy, Lee).

>>> import dn_core
>>> import numpy as np
>>> noisy = np.random.default_rng(0).normal(100, 20, (64, 64)).astype(np.float32)
>>> clean = dn_core.denoise(noisy)
>>> bool(clean.std() < noisy.std() / 2)
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dn_core import processes as _processes  # noqa: F401  # its hooks must be there before the first fork

if TYPE_CHECKING:
    from dn_core.errors import CheckpointError, DnError, ImageFileError, RegistryError, UnknownModelError
    from dn_core.inference.denoise import Model, Progress, denoise, denoise_steps, engine_name, load_model
    from dn_core.inference.planes import blend
    from dn_core.models.registry import model_names
    from dn_core.training.cascade import train
    from dn_core.training.finetune import finetune

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DnError",
    "ImageFileError",
    "Model",
    "Progress",
    "RegistryError",
    "UnknownModelError",
    "__version__",
    "blend",
    "denoise",
    "denoise_steps",
    "engine_name",
    "finetune",
    "load_model",
    "model_names",
    "train",
]

# Where each name lives: imported when first used, so that `import dn_core` costs next to nothing and loads no torch.
_HOMES = {
    "CheckpointError": "errors",
    "DnError": "errors",
    "ImageFileError": "errors",
    "RegistryError": "errors",
    "UnknownModelError": "errors",
    "Model": "inference.denoise",
    "Progress": "inference.denoise",
    "blend": "inference.planes",
    "denoise": "inference.denoise",
    "denoise_steps": "inference.denoise",
    "engine_name": "inference.denoise",
    "finetune": "training.finetune",
    "load_model": "inference.denoise",
    "model_names": "models.registry",
    "train": "training.cascade",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dn_core' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dn_core.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
