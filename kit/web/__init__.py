"""HTTP frame of every program: application, middleware, access checks, server."""
