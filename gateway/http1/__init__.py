"""HTTP/1.1 syntax: header validation, known-header cache, multipart forms. No I/O."""
