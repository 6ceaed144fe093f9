"""Health checks: probes, canary requests, stall detection, engine metrics."""
