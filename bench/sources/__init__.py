"""Faulty and slow sources of model files."""
