"""Hugging Face Hub API: list a model's files at a commit, download them in parallel, verified and resumable."""
