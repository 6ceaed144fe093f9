"""Benchmarks against reference programs, one command each: `python -m bench.NAME`.

Every bench runs its reference in the same call, interleaved with ours, since absolute figures of a shared machine mean
nothing. It prints a table and, as its last line, `{"bench": NAME, "figures": {...}}`.
"""
