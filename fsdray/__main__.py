"""``python -m fsdray`` is the command ``fsdray``."""

import sys

from fsdray.cli import main

sys.exit(main())
