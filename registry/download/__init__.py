"""Downloads of models into the store: jobs, files in parts, progress."""
