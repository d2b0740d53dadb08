"""Ground floor: the types that the whole house speaks, on numpy, pydantic and PyYAML alone."""
