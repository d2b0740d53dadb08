"""What a user does, from start to end: paths in, paths out."""
