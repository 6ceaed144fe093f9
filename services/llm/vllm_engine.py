"""vLLM's own OpenAI server in this process (placeholder until the next commit)."""

from pathlib import Path
from typing import Any

from kit.catalogue import Entry
from kit.metrics import HttpMetrics
from kit.service import Report


async def open_engine(
    folder: Path, entry: Entry, arguments: dict[str, Any], *, metrics: HttpMetrics, on_death: Any, report: Report
) -> Any:
    """Not yet."""
    raise NotImplementedError
