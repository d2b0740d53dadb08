"""A network over a whole scan: windows, accumulation, restoring."""
