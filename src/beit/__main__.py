"""`python -m beit` is the command `beit`."""

import sys

from beit.cli import main

sys.exit(main())
