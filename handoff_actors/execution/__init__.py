"""Running DAGs: the run state, the runner around it, the desk that admits runs, the workers."""
