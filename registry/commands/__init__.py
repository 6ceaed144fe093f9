"""The registry's command line."""
