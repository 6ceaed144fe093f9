"""The cluster's processes: supervision, sessions, readiness and logs."""
