"""Requests while their backends fail: `python -m bench.faults`."""
