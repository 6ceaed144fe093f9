"""Dynamic batching: texts of concurrent requests share the engine's batches."""
