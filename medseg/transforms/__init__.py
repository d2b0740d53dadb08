"""Scans to tensors and back: the MONAI door of the house."""
