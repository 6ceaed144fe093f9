"""One OpenAI API in front of every model service: choose the backend, relay the bytes."""
