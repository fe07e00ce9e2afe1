"""Training: from a recipe and clean images, or by finetuning on user images."""

# What is public is listed in `__init__.pyi` and imported on first use.

import lazy_loader

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
