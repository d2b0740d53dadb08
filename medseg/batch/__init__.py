"""Thousands of scans: what is done is remembered, and only the rest is worked on."""
