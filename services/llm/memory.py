"""Memory available to a model on a CPU."""

import os
from pathlib import Path

# Limit of the container's cgroup (v2), as seen from inside.
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes(limit: Path = CGROUP_LIMIT) -> int:
    """Return the memory of the machine or the container's limit, whichever is less, in bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        value = limit.read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return min(machine, int(value)) if value.isdigit() else machine
