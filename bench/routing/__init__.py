"""How well the gateway chooses: its real code in simulated time, and once for real. `python -m bench.routing`."""
