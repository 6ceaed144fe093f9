"""Server-sent event streams: parse, record, continue on another backend, splice. No I/O."""
