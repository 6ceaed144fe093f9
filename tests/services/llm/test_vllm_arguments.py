"""The command line that vLLM gets: the catalogue's and the settings' arguments over safe defaults."""

from pathlib import Path
from typing import Any

import pytest

from kit.catalogue import Entry
from kit.settings import SettingsError
from services.llm.vllm_arguments import command_line

ENTRY = Entry(name="tiny", kind="multimodal", hf_repo="org/tiny", aliases=("small",), context_length=2048)
FOLDER = Path("/models/tiny")


def line(*, cpu: bool = False, **arguments: Any) -> list[str]:
    return command_line(FOLDER, ENTRY, arguments, cpu=cpu)


def values(line: list[str], flag: str) -> list[str]:
    """What follows `flag`, up to the next one."""
    rest = line[line.index(flag) + 1 :]
    return rest[: next((at for at, word in enumerate(rest) if word.startswith("--")), len(rest))]


def test_the_service_decides_on_the_model_and_its_names() -> None:
    assert values(line(), "--model") == ["/models/tiny"]
    assert values(line(), "--served-model-name") == ["tiny", "small", "org/tiny"]


@pytest.mark.parametrize("name", ["model", "served_model_name", "port", "api_key"])
def test_what_the_service_decides_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        line(**{name: "x"})


def test_arguments_are_spelt_as_vllm_reads_them() -> None:
    made = line(max_model_len=-1, enforce_eager=False, limit_mm_per_prompt={"image": 2}, seed=None)
    assert "--max-model-len=-1" in made
    assert "--no-enforce-eager" in made
    assert '--limit-mm-per-prompt={"image": 2}' in made
    assert not [word for word in made if word.startswith("--seed")]


def test_no_url_in_a_request_is_fetched_unless_a_host_is_named() -> None:
    """vLLM would fetch any address that a request names, those of the cluster's own network among them."""
    assert values(line(), "--allowed-media-domains") == ["media.invalid"]
    assert values(line(allowed_media_domains=["images.example.org"]), "--allowed-media-domains") == [
        "images.example.org"
    ]


def test_a_cpu_starts_without_compiling() -> None:
    assert "--enforce-eager" in line(cpu=True)
    assert "--enforce-eager" not in line()
