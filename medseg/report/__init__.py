"""Pictures and tables for people; arrays in, bytes out."""
