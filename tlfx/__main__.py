"""``python -m tlfx``: the command line."""

import sys

from tlfx.cli import main

sys.exit(main())
