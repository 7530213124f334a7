"""`python -m frcnn_plugin`: the console command `frcnn`."""

import sys

from frcnn_command import main

if __name__ == "__main__":
    sys.exit(main())
