"""Memory available to a model on a CPU."""

from pathlib import Path

import pytest

from services.llm.memory import memory_bytes


@pytest.mark.parametrize(
    ("content", "expected"), [("1073741824\n", 1 << 30), ("max\n", None), ("9" * 30, None), (None, None)]
)
def test_lower_container_limit_takes_precedence(tmp_path: Path, content: str | None, expected: int | None) -> None:
    limit = tmp_path / "memory.max"
    machine = memory_bytes(limit)
    if content is not None:
        limit.write_text(content)
    assert memory_bytes(limit) == (machine if expected is None else expected)
    assert machine > 1 << 30
