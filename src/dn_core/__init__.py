"""Image denoising by small residual networks, after *DN-ResNet* (Ren, El-khamy, Lee).

>>> import dn_core
>>> import numpy as np
>>> noisy = np.random.default_rng(0).normal(100, 20, (64, 64))
>>> clean = dn_core.denoise(noisy)
>>> bool(clean.std() < noisy.std() / 2)
True
"""

# What is public is listed in `__init__.pyi` and imported on first use, so that `import dn_core`
# costs next to nothing and loads no torch.

import lazy_loader

from dn_core import processes as _processes  # noqa: F401  # its hooks precede the first fork

__version__ = "0.1.0"

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
