"""Long mixed runs that look for leaks: ``python -m tests.soak.soak --minutes 10``."""
