"""`python -m fullrank` is the `fullrank` command."""

import sys

from fullrank.cli import main

sys.exit(main())
