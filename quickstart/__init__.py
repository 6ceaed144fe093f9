"""Quickstart: the cluster as processes on one machine, with small models (`scripts/quickstart.sh`)."""


class QuickstartError(Exception):
    """The quickstart or its installation failed; the message has the reason and the remedy."""
