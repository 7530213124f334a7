#!/usr/bin/env python
"""The command `frcnn predict` under the name of a script."""

import sys

from frcnn_command import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
