"""`python -m sim`: run, compare, check and list."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
