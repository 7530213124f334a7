#!/usr/bin/env python
"""The command `frcnn visualize` under the name of a script."""

import sys

from frcnn_command import main

if __name__ == "__main__":
    sys.exit(main(["visualize", *sys.argv[1:]]))
