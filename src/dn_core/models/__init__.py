"""Models: the bundled, downloaded and own ones on this machine, and registries to download from.

>>> from dn_core import models
>>> models.model_names()[0] == models.default_name()
True
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
