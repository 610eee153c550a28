"""``python -m polytask``: the command line."""

import sys

from polytask.cli import main

sys.exit(main())
