"""``python -m threatbus`` is the command ``threatbus``."""

import sys

from threatbus.cli import main

if __name__ == "__main__":
    sys.exit(main())
