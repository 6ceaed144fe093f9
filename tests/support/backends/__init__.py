"""Fake model servers with faults on request."""
