"""The text service with real vLLM."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.services.llm.process import ServiceProcess
from tests.support.programs import vllm_cpu


class VllmService(ServiceProcess):
    """A service whose Python is that of the environment with vLLM."""

    def __init__(self, folder: Path, entry: Mapping[str, Any], **settings: str) -> None:
        """As for any service; `settings` are more of its environment."""
        # Two of them share a machine that has the test's own processes too.
        settings = {"ENGINE": "vllm", "ENGINE_ARGS": f'{{"kv_cache_memory_bytes": {2**30}}}', **settings}
        super().__init__(vllm_cpu.python(), folder, entry, **settings)


@contextlib.contextmanager
def healthy(service: VllmService) -> Iterator[VllmService]:
    """The service once it is healthy; nothing is left of it afterwards."""
    try:
        service.until("healthy")
        yield service
    finally:
        service.kill()
