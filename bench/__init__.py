"""Ratios against peers, one command each: `python -m bench.NAME`.

Every bench runs its reference in the same call, interleaved with ours, since an absolute figure of a shared machine
means nothing. It prints a table for people and, as its last line, `{"bench": NAME, "figures": {...}}`.
"""
