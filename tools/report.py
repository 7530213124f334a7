#!/usr/bin/env python
"""See frcnn_plugin/cli/report.py."""

import sys

from frcnn_plugin.cli.report import main

if __name__ == "__main__":
    result = main()
    sys.exit(result if isinstance(result, int) else 0)
