"""Noise and degradation models: the paper's (sections 4.1 and 4.4), and that of real detectors.

Each model is called with clean images ``(N, 1, H, W)`` in 0..1 and a ``torch.Generator``, and gives
a `Noisy`: the noisy images, neither clipped nor rounded (unless the model is of a detector that
does so), and the standard deviation of their noise. A parameter is a number, or one of `Uniform`,
`LogUniform`, `Choice` and `Sometimes`, from which a value is drawn for each image.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
