"""From a dataset to weights: cache, batches, losses, the loop."""
