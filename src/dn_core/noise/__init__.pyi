from .degradations import Bpg, Jpeg, Jpeg2000, SuperResolution
from .models import Gaussian, Mixture, Noise, Noisy, Poisson, PoissonGaussian, paper_mixture
from .parameters import Choice, LogUniform, Uniform
from .tables import noise_from_dict

__all__ = [
    "Bpg",
    "Choice",
    "Gaussian",
    "Jpeg",
    "Jpeg2000",
    "LogUniform",
    "Mixture",
    "Noise",
    "Noisy",
    "Poisson",
    "PoissonGaussian",
    "SuperResolution",
    "Uniform",
    "noise_from_dict",
    "paper_mixture",
]
