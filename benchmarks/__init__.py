"""`python -m benchmarks`: what is measured, against whom, how, and how it is shown."""

import time

STARTED = time.monotonic()  # before torch is imported, which can take long
