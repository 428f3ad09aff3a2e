"""`python -m dwlth`: the commands are in `dwlth/interface/commands.py`."""

import sys

from dwlth.interface.commands import main

if __name__ == "__main__":
    sys.exit(main())
