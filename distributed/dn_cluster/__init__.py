"""Code shared by the Ray scripts; Ray copies it and the checkout's dn_core to every node."""

import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "src"
"""Where dn_core is in a checkout. A node that got this package from Ray has no such folder."""

if (SOURCES / "dn_core").is_dir():
    sys.path.insert(0, str(SOURCES))
