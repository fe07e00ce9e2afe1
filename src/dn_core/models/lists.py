"""The lists of models on this machine: the package's own, and that of the models folder."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

from dn_core.errors import RegistryError
from dn_core.models.folder import NoHomeError, models_folder, read_index
from dn_core.models.index import FILE, Entry, Index, parse_index

__all__ = ["bundled", "in_folder"]


@functools.cache
def bundled() -> Index:
    """The index of the models that come with the package."""
    folder = Path(__file__).parent
    return parse_index((folder / FILE).read_bytes(), str(folder), "bundled")


def in_folder() -> tuple[Entry, ...]:
    """All versions in the models folder; none where its index is damaged, with a warning."""
    try:
        return read_index(models_folder()).versions
    except NoHomeError:
        return ()
    except (OSError, RegistryError) as error:
        warnings.warn(f"downloaded and own models are left out: {error}", stacklevel=4)
        return ()
