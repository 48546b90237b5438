"""`python -m conescope` is the same as `conescope`."""

import sys

from conescope.cli import main

if __name__ == "__main__":
    sys.exit(main())
