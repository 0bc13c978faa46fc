"""`python -m integrity`."""

import sys

from integrity.cli import main

if __name__ == "__main__":
    sys.exit(main())
