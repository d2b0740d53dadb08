"""Files to core types and back; no torch here."""
