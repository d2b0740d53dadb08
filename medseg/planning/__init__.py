"""What the data looks like, and the plan that follows from it."""
