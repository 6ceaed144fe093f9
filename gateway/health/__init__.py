"""Health checks: polls, canary requests, stall detection, engine metrics."""
