#!/usr/bin/env python
"""The command `frcnn weights convert` under the name of a script."""

import sys

from frcnn_command import main

if __name__ == "__main__":
    sys.exit(main(["weights", "convert", *sys.argv[1:]]))
