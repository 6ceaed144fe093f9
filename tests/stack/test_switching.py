"""From one compose file to the other and back: one project, no orphans, models are kept."""

import pytest

from tests.stack import sample_requests
from tests.stack.hub import Hub
from tests.stack.stack import CLUSTER_FILE, Stack

CLUSTER = f"docker compose -f {CLUSTER_FILE}"
ONLINE = "docker compose"


@pytest.mark.parametrize(("first", "second"), [(ONLINE, CLUSTER), (CLUSTER, ONLINE)])
def test_switching_compose_files_leaves_nothing_over(clean: Stack, internet: Hub, first: str, second: str) -> None:
    """No orphan containers."""
    internet.start()
    if first == CLUSTER:
        clean.run("./scripts/offline-setup.sh --skip-images", timeout=1800)
    clean.run(f"{first} up --detach --wait")
    done = clean.run(f"{second} up --detach")
    assert "orphan" not in done.stderr
    clean.until_healthy("llm-primary", "embedding")
    sample_requests.chat()
    names = {line.split()[0] for line in clean.run(f"{second} ps --format '{{{{.Service}}}}'").stdout.splitlines()}
    assert ("edge" in names) == (second == CLUSTER)
    done = clean.run(f"{second} down")
    assert "orphan" not in done.stderr
    assert not clean.containers()
    assert not clean.networks()
