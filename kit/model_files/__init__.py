"""Model files from the registry: verified, resumable, shared between processes."""
