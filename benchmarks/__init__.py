"""Parts of tools/benchmark.py: what is measured, against whom, how, and how it is shown."""
