"""Edge proxy of the air-gapped cluster: the one container on both networks, which forwards connections inwards only."""


class EdgeError(Exception):
    """The edge cannot start; the message has the reason and the remedy."""
