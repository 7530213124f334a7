#!/usr/bin/env python
"""The command `frcnn doctor` under the name of a script."""

import sys

from frcnn_command import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
