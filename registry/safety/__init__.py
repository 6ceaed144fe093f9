"""Inspection of models before publication: pickles and remote code."""
