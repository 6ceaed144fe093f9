"""The choice of a backend for a request. Pure: state in, decision or error out; no sockets, no clock.

`candidates` lists the possible backends, `cost` scores them, `affinity` adds the prompt's and conversation's home,
`router` decides.
"""

from gateway.backends.load import Ticket
from gateway.routing.request import Candidate, RoutingRequest
from gateway.routing.router import Choice, Router

__all__ = ["Candidate", "Choice", "Router", "RoutingRequest", "Ticket"]
