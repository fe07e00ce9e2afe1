"""Noise and degradation models: those of the paper's sections 4.1 (noise) and 4.4 (codecs).

Each model is called with clean images ``(N, 1, H, W)`` in 0..1 and a ``torch.Generator``, and gives
a `Noisy`: the noisy images, neither clipped nor rounded, and the standard deviation of their noise.
A parameter is a number, or one of `Uniform`, `LogUniform` and `Choice`, from which a value is drawn
for each image.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
