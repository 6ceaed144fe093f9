"""The gateway's own routes: services, models, GPUs, drain, explain, dashboard."""
