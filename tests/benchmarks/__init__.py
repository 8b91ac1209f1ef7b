"""The cost of the runtime beside floors of the same run: ``python -m tests.benchmarks``."""
