"""``python -m patchcert`` is the command line."""

import sys

from patchcert.cli import main

sys.exit(main())
