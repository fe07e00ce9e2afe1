"""What the scripts in this folder share; Ray carries it to all nodes, with the dn_core of the checkout that it lies in."""

import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "src"
"""Where dn_core lies in a checkout. On a node that this package was carried to, there is no such folder."""

if (SOURCES / "dn_core").is_dir():
    sys.path.insert(0, str(SOURCES))
