"""HTTP: the registry's own routes and the read side of the Hugging Face Hub API."""
