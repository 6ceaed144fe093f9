"""Which backend answers a request. Pure: state in, decision or error out; no socket, no clock of its own.

`candidates` says which may, `cost` what each would cost, `affinity` who has read the prompt before, `router` chooses.
"""

from gateway.backends.load import Ticket
from gateway.routing.request import Candidate, RoutingRequest
from gateway.routing.router import Choice, Router

__all__ = ["Candidate", "Choice", "Router", "RoutingRequest", "Ticket"]
