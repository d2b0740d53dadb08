"""Networks by name, each built from the plan alone."""
