"""Experience replay on one device: stores every frame once and samples batches, uniformly or by priority."""
