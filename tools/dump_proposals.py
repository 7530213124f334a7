#!/usr/bin/env python
"""See frcnn_plugin/cli/dump_proposals.py."""

import sys

from frcnn_plugin.cli.dump_proposals import main

if __name__ == "__main__":
    result = main()
    sys.exit(result if isinstance(result, int) else 0)
