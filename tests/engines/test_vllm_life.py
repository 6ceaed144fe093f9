"""Start and stop of a service with real vLLM."""

import threading
from pathlib import Path

from tests.engines.vllm_service import VllmService
from tests.services.llm.process import interrupted

ENTRY = {"kind": "llm", "hf_repo": "org/tiny", "context_length": 2048}


def test_stop_during_the_load_leaves_no_process(tmp_path: Path, smollm2: Path) -> None:
    service = VllmService(tmp_path, ENTRY, MODEL_DIR=str(smollm2))
    pause = threading.Event()
    try:
        while len(service.members()) < 3:
            assert service.health()["status"] != "failed", service.log.read_text()
            pause.wait(0.05)
        service.stop()
        assert service.left_behind() == []
    finally:
        service.kill()


def test_invalid_argument_is_reported_by_name(tmp_path: Path, smollm2: Path) -> None:
    service = VllmService(tmp_path, ENTRY, MODEL_DIR=str(smollm2), ENGINE_ARGS='{"no_such_argument": 1}')
    try:
        assert "no-such-argument" in service.until("failed")["detail"]
        service.stop()
        assert service.left_behind() == []
    finally:
        service.kill()


def test_out_of_memory_is_reported_with_the_remedy(tmp_path: Path, smollm2: Path) -> None:
    """The error occurs in a grandchild process."""
    arguments = '{"kv_cache_memory_bytes": 20000000}'  # less than half of what 2,048 tokens need
    service = VllmService(tmp_path, ENTRY, MODEL_DIR=str(smollm2), ENGINE_ARGS=arguments)
    try:
        detail = service.until("failed")["detail"]
        assert "Out of memory: one request of max_model_len 2048 tokens needs 0.0" in detail
        assert all(name in detail for name in ("max_model_len", "gpu_memory_utilization", "kv_cache_dtype"))
        service.stop()
        assert service.left_behind() == []
    finally:
        service.kill()


def test_stop_ends_a_stream_with_an_error_and_leaves_no_process(text: VllmService) -> None:
    """Runs last: it stops the shared service."""
    assert len(text.members()) > 1
    event, last = interrupted(text, "/v1/chat/completions")
    assert event["error"]["code"] == 503
    assert "Retry the request" in event["error"]["message"]
    assert last == "data: [DONE]"
    assert text.left_behind() == []
    assert "EngineDeadError" not in text.log.read_text()
