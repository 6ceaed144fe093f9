"""Hugging Face Hub as a source: client and file selection."""
