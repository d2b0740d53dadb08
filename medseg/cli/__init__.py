"""The commands: thin, each calls one workflow."""
