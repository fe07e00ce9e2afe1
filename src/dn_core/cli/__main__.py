"""``python -m dn_core.cli``."""

from dn_core.cli import main

if __name__ == "__main__":
    main()
