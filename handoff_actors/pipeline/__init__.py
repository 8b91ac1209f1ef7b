"""Pipelines: DAGs as long-lived streams of items, with demand, order, and no item lost."""
