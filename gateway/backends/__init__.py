"""Per-backend state: health, live load, latency and prefix models, circuit breaker."""
