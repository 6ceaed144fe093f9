"""Store maintenance: garbage collection, scrub, readiness check."""
