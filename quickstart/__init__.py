"""Quickstart: the cluster as processes on one machine, with small models (`scripts/quickstart.sh`)."""
