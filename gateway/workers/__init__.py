"""Several worker processes on one port: supervision, connection balancing, shared state."""
