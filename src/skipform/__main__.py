"""`python -m skipform STAGE ...` is `skipform STAGE ...`."""

import sys

from skipform.stages.cli import main

if __name__ == "__main__":
    sys.exit(main())
