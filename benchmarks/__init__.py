"""`python -m benchmarks`: what is measured, against whom, how, and how it is shown."""
