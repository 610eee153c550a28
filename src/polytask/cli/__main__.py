"""``python -m polytask.cli``: the command line."""

import sys

from polytask.cli import main

sys.exit(main())
