"""`python -m sim`: run, compare, check, list and schema."""

import signal
import sys

from .cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever is told to end leaves no half results either
    sys.exit(main())
