"""Connections to backends: one HTTP/1.1 connection, its pool, its socket options."""
