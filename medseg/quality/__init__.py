"""Quality: what is wrong with a dataset, and how to mend it."""
