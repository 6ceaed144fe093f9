"""Programs run as `python -m kit.tools.NAME` in containers and scripts."""
