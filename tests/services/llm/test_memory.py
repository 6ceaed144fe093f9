"""The memory that a model on a CPU may count on."""

from pathlib import Path

import pytest

from services.llm.memory import memory_bytes


@pytest.mark.parametrize(
    ("written", "most"), [("1073741824\n", 1 << 30), ("max\n", None), ("9" * 30, None), (None, None)]
)
def test_a_containers_limit_counts_where_it_is_less_than_the_machine(
    tmp_path: Path, written: str | None, most: int | None
) -> None:
    """Without one, or with one that is more, it is the machine's."""
    limit = tmp_path / "memory.max"
    machine = memory_bytes(limit)
    if written is not None:
        limit.write_text(written)
    assert memory_bytes(limit) == (machine if most is None else most)
    assert machine > 1 << 30
