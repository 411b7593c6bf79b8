"""`python -m sim`: run, compare, check, list and schema."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
