"""``python -m lightning_bsscale``."""

import sys

from lightning_bsscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
