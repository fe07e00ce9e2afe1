from .degradations import Bpg, Jpeg, Jpeg2000, SuperResolution
from .detector import Detector
from .models import Gaussian, Mixture, Noise, Noisy, Poisson, PoissonGaussian, paper_mixture
from .parameters import Choice, LogUniform, Sometimes, Uniform
from .tables import noise_from_dict

__all__ = [
    "Bpg",
    "Choice",
    "Detector",
    "Gaussian",
    "Jpeg",
    "Jpeg2000",
    "LogUniform",
    "Mixture",
    "Noise",
    "Noisy",
    "Poisson",
    "PoissonGaussian",
    "Sometimes",
    "SuperResolution",
    "Uniform",
    "noise_from_dict",
    "paper_mixture",
]
