"""Validation of requests for the transformers engine."""
