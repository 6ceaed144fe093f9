"""Models: manifests, the library that publishes them, model cards, quota."""
