"""The life of a service with real vLLM: what stops it, and what it says when it cannot start."""

import threading
from pathlib import Path

from tests.engines.vllm_service import VllmService

ENTRY = {"kind": "llm", "hf_repo": "org/tiny", "context_length": 2048}


def test_a_stop_in_the_middle_of_the_load_leaves_no_process(tmp_path: Path, smollm2: Path) -> None:
    service = VllmService(tmp_path, ENTRY, MODEL_DIR=str(smollm2))
    pause = threading.Event()
    try:
        while len(service.members()) < 3:
            assert service.health()["status"] != "failed", service.log.read_text()
            pause.wait(0.2)
        service.stop()
        assert service.left_behind() == []
    finally:
        service.kill()


def test_a_wrong_argument_is_told_by_its_name(tmp_path: Path, smollm2: Path) -> None:
    service = VllmService(tmp_path, ENTRY, MODEL_DIR=str(smollm2), ENGINE_ARGS='{"no_such_argument": 1}')
    try:
        assert "no-such-argument" in service.until("failed")["detail"]
        service.stop()
        assert service.left_behind() == []
    finally:
        service.kill()


def test_a_stop_leaves_no_process(text: VllmService) -> None:
    """Runs last: it ends the service that other tests use."""
    assert len(text.members()) > 1
    text.stop()
    assert text.left_behind() == []
    assert "EngineDeadError" not in text.log.read_text()
