"""Quality of the gateway's routing: its real code in simulated time and over sockets. `python -m bench.routing`."""
