"""`python -m gameserver`."""

from __future__ import annotations

import sys

from gameserver.cli import main

if __name__ == "__main__":
    sys.exit(main())
