"""One run over several machines: the pool's workers in Ray actors, one or more on each node."""
