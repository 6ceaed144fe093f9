"""How much memory there is for a model that computes on a CPU."""

import os
from pathlib import Path

# The limit of the container's own group (cgroup v2), as it is seen from inside.
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes(limit: Path = CGROUP_LIMIT) -> int:
    """The machine's memory in bytes, or the container's where that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        most = limit.read_text(encoding="ascii").strip()
    except OSError:
        return machine
    return min(machine, int(most)) if most.isdigit() else machine
