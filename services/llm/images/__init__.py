"""Images in requests: allowed sources, limits, decoding."""
