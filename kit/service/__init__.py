"""Frame of a model service: fetch, load, serve, close; GPU statistics."""
