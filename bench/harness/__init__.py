"""Programs under test, load on them, and reports of the figures."""
