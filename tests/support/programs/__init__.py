"""Real programs that tests start: a registry, an S3 server, vLLM, containers, the whole cluster."""
