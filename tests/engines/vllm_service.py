"""The text service with real vLLM."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.services.llm.process import ServiceProcess
from tests.support.programs import vllm_cpu


class VllmService(ServiceProcess):
    """A service in the Python environment with vLLM."""

    def __init__(self, folder: Path, entry: Mapping[str, Any], **settings: str) -> None:
        """`settings` are additional environment variables."""
        # Two of them share the machine's memory.
        settings = {"ENGINE": "vllm", "ENGINE_ARGS": f'{{"kv_cache_memory_bytes": {2**30}}}', **settings}
        super().__init__(vllm_cpu.python(), folder, entry, **settings)


@contextlib.contextmanager
def healthy(service: VllmService) -> Iterator[VllmService]:
    """Yield the service once it is healthy; kill it afterwards."""
    try:
        service.until("healthy")
        yield service
    finally:
        service.kill()
