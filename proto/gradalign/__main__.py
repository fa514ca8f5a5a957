"""`python -m gradalign`: the same as the console script."""

import sys

from gradalign.cli import main

sys.exit(main())
