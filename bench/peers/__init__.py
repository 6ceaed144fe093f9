"""Reference programs that ours are compared with."""
