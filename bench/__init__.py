"""Ratios against peers, one command each: `python -m bench.NAME`."""
