"""``python -m tlfx``: the command line."""

import sys

from tlfx.commands.cli import main

sys.exit(main())
