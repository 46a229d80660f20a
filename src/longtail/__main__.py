"""Runs the command line: `python -m longtail`."""

import sys

from longtail.cli import main

sys.exit(main())
