"""Model packages: JSON, safetensors and checksums. Loading one runs no code."""
