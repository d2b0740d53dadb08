"""Datasets: which scans and masks belong together, what the labels mean, who trains on what."""
