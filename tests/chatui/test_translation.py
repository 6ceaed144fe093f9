"""Translation of chatui.env: the shipped file, the blocks of the quick reference, keys, formats of old versions."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chatui.env_file import EnvFileError, Setting, read
from chatui.translation import Outcome, convert
from kit.config.catalogue import Catalogue
from tests.support.chat_ui import Model, models_of

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = Catalogue.load(ROOT / "models.yaml")
SHIPPED = read((ROOT / "chatui.env").read_text(encoding="utf-8"))
# The blocks of "Chat UI Integration", verbatim.
SECTION = (ROOT / "docs" / "quick-reference.md").read_text(encoding="utf-8").partition("## Chat UI Integration")[2]
BLOCKS = re.findall(r"```env\n(.*?)```", SECTION.partition("\n## ")[0], re.DOTALL)


def converted(text: str, *keys: str) -> Outcome:
    """Translate a file that contains only `text`."""
    return convert(read(text), SHIPPED, CATALOGUE, keys)


def displayed(outcome: Outcome) -> dict[str, Model]:
    """Return the models in Chat UI if every model of the catalogue is served."""
    names = ["cluster", *(entry.name for entry in CATALOGUE)]
    listed: dict[str, Any] = {"data": [{"id": name} for name in names]}
    return models_of(listed, json.loads(outcome.settings["MODELS"]))


def shown(outcome: Outcome) -> list[str]:
    """Return the names that Chat UI shows, in order."""
    return [model.id for model in displayed(outcome).values() if not model.unlisted]


def test_shipped_file() -> None:
    """No remarks; chat models are shown, others hidden."""
    outcome = convert(SHIPPED, SHIPPED, CATALOGUE, ())
    assert outcome.remarks == []
    assert shown(outcome) == ["cluster", "qwen", "tinyllama", "llava"]
    assert displayed(outcome)["qwen"].display_name == "Qwen (fast)"
    assert displayed(outcome)["llava"].multimodal
    settings = outcome.settings
    assert settings["OPENAI_BASE_URL"] == "http://gateway:8080/v1"
    assert settings["TRANSCRIPTION_BASE_URL"] == "http://gateway:8080/transcribe"
    assert CATALOGUE.resolve(settings["TRANSCRIPTION_MODEL"]).kind == "transcription"
    assert settings["OPENAI_API_KEY"] == "none"


def test_shipped_file_names_only_hosts_of_the_stack() -> None:
    hosts = {match for setting in SHIPPED.values() for match in re.findall(r"\w+://([\w.-]+)", setting.value)}
    assert hosts == {"gateway", "mongo"}


def test_quick_reference_has_both_blocks() -> None:
    """The tests below use the text of the document."""
    assert [block.count('"name"') for block in BLOCKS] == [1, 2]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_first_block_of_the_quick_reference(end: str) -> None:
    """Alone, it shows the cluster under its display name; all other settings are as shipped."""
    outcome = converted(BLOCKS[0].replace("\n", end))
    assert shown(outcome) == ["cluster"]
    assert displayed(outcome)["cluster"].display_name == "Multi-GPU Cluster"
    assert outcome.remarks == []
    assert outcome.settings == convert(SHIPPED, SHIPPED, CATALOGUE, ()).settings | {
        "MODELS": outcome.settings["MODELS"]
    }


def test_second_block_of_the_quick_reference() -> None:
    """Alone, it shows the two models, routed through the gateway, with a remark for each."""
    outcome = converted(BLOCKS[1])
    assert shown(outcome) == ["qwen", "llava"]
    assert displayed(outcome)["qwen"] == Model("qwen", "Qwen (Fast)")
    assert displayed(outcome)["llava"] == Model("llava", "LLaVA Vision", multimodal=True)
    assert "endpoints" not in outcome.settings["MODELS"]
    assert [remark.partition(":")[0] for remark in outcome.remarks] == ["line 2", "line 7"]
    assert "http://multimodal:8003/v1" in outcome.remarks[1]


@pytest.mark.parametrize("block", [0, 1])
def test_block_pasted_below_the_shipped_file(block: int) -> None:
    """The last MODELS of a file counts."""
    text = (ROOT / "chatui.env").read_text(encoding="utf-8") + "\n" + BLOCKS[block]
    assert shown(converted(text)) == shown(converted(BLOCKS[block]))


@pytest.mark.parametrize(
    ("text", "keys", "key"),
    [
        ("", (), "none"),
        ("", ("first", "second"), "first"),
        ("OPENAI_API_KEY=", ("first",), "first"),
        ("OPENAI_API_KEY=", (), "none"),
        ("OPENAI_API_KEY=second", ("first", "second"), "second"),
        ("OPENAI_API_KEY=mine", (), "mine"),
        ('MODELS=[{"name": "qwen", "endpoints": [{"type": "openai", "baseURL": "http://gateway:8080/v1", '
         '"apiKey": "second"}]}]', ("first", "second"), "second"),
    ],
)  # fmt: skip
def test_key(text: str, keys: tuple[str, ...], key: str) -> None:
    """OPENAI_API_KEY, else the key of an endpoint, else the gateway's first; never empty, for the microphone."""
    outcome = converted(text, *keys)
    assert outcome.settings["OPENAI_API_KEY"] == key
    assert outcome.remarks == []


def test_unknown_key_is_remarked_but_not_printed() -> None:
    (remark,) = converted("OPENAI_API_KEY=sk-wrong", "sk-right").remarks
    assert "GATEWAY_API_KEYS" in remark
    assert "sk-" not in remark


def models(*entries: dict[str, Any]) -> str:
    return "MODELS=" + json.dumps(entries)


def test_entries_may_use_any_name_of_a_model() -> None:
    """The gateway lists the first one only. A model that cannot chat is shown only with "unlisted": false."""
    outcome = converted(
        models({"name": "Qwen/Qwen2.5-0.5B-Instruct", "preprompt": "p"}, {"id": "embedding", "displayName": "E"},
               {"id": "whisper-1", "displayName": "Ears", "unlisted": False})
    )  # fmt: skip
    assert shown(outcome) == ["cluster", "qwen", "tinyllama", "llava", "whisper"]
    assert displayed(outcome)["qwen"].display_name == "Qwen/Qwen2.5-0.5B-Instruct"
    assert displayed(outcome)["whisper"].display_name == "Ears"
    assert '"preprompt":"p"' in outcome.settings["MODELS"].replace(" ", "")


@pytest.mark.parametrize("turn", [1, -1])
def test_entry_with_the_listed_name_takes_precedence(turn: int) -> None:
    """Over one with an alias, in either order."""
    entries = [{"name": "qwen", "displayName": "Q"}, {"name": "Qwen/Qwen2.5-0.5B-Instruct", "displayName": "other"}]
    assert displayed(converted(models(*entries[::turn])))["qwen"].display_name == "Q"


def test_models_for_tasks_are_those_that_the_gateway_lists() -> None:
    outcome = converted("TASK_MODEL=Qwen/Qwen2.5-0.5B-Instruct\nTRANSCRIPTION_MODEL=whisper-1")
    assert (outcome.settings["TASK_MODEL"], outcome.settings["TRANSCRIPTION_MODEL"]) == ("qwen", "whisper")
    assert outcome.remarks == []


def test_unknown_names_are_passed_on_with_a_remark() -> None:
    outcome = converted(models({"name": "gpt-9"}) + "\nTASK_MODEL=gpt-8\nTRANSCRIPTION_MODEL=ears")
    assert "gpt-9" in outcome.settings["MODELS"]
    assert [name for remark in outcome.remarks for name in re.findall(r"gpt-\d|ears", remark)] == [
        "gpt-9", "gpt-8", "ears",
    ]  # fmt: skip


def test_shipped_models_that_a_site_lacks_get_no_remark() -> None:
    only = Catalogue([entry for entry in CATALOGUE if entry.name in ("qwen", "whisper")])
    assert convert(read("PUBLIC_APP_NAME=Ours"), SHIPPED, only, ()).remarks == []


def test_keys_of_older_versions_are_removed() -> None:
    """One of them would make Chat UI ignore all of MODELS."""
    entry = {
        "name": "qwen",
        "displayName": "Q",
        "tokenizer": "x",
        "chatPromptTemplate": "y",
        "prepromptUrl": "http://z",
    }
    outcome = converted(models(entry))
    assert json.loads(outcome.settings["MODELS"])[0] == {"name": "qwen", "displayName": "Q"}
    assert len(outcome.remarks) == 3


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("OPENAI_BASE_URL=\n", 1, "http://gateway:8080/v1"),
        ("A=1\nOPENAI_BASE_URL=gateway:8080", 2, "http://gateway:8080/v1"),
        ('A=1\nMODELS=[\n {"name": "qwen"},\n {"displayName": "x"}\n]', 4, '"name"'),
        ('MODELS=[\n "qwen"]', 2, '"name"'),
        ('MODELS=[{"name": 7}]', 1, "name is 7"),
        ('MODELS=[{"name": "qwen", "displayName": ""}]', 1, "displayName is ''"),
        ('MODELS=[{"name": "qwen", "multimodal": "yes"}]', 1, "true or false"),
        ('MODELS=[{"name": "qwen", "logoUrl": "logo.png"}]', 1, "a URL"),
        ('MODELS=[{"name": "qwen", "endpoints": [{"type": "tgi", "url": "http://x"}]}]', 1, "tgi"),
        ('MODELS=[{"name": "qwen", "endpoints": ["http://x"]}]', 1, "openai"),
        ('MODELS=[{"name": "qwen", "endpoints": {}}]', 1, "a list"),
        ("MODELS={}", 1, "not a list"),
        ("USAGE_LIMITS='{'", 1, "USAGE_LIMITS is not valid JSON"),
    ],
)
def test_invalid_settings_are_rejected_by_line(text: str, line: int, says: str) -> None:
    """With them Chat UI would fail, or silently ignore others."""
    with pytest.raises(EnvFileError, match=f"^line {line}: .*{re.escape(says)}"):
        converted(text)


@pytest.mark.parametrize("empty", ["MODELS=", "MODELS=[]", "MODELS=``"])
def test_without_models_every_chat_model_is_shown(empty: str) -> None:
    assert shown(converted(empty)) == ["cluster", "qwen", "tinyllama", "llava"]


def test_unknown_settings_are_passed_on() -> None:
    """Settings that are missing are as shipped."""
    outcome = converted("PUBLIC_APP_NAME='Our chat'\nMY_OWN=1\nMCP_SERVERS=[\n]")
    assert outcome.settings["PUBLIC_APP_NAME"] == "Our chat"
    assert (outcome.settings["MY_OWN"], outcome.settings["MCP_SERVERS"]) == ("1", "[]")
    assert outcome.settings.keys() == SHIPPED.keys() | {"MY_OWN"}


def test_input_is_not_modified() -> None:
    written = {"MODELS": Setting("MODELS", "[]", 1)}
    convert(written, SHIPPED, CATALOGUE, ("k",))
    assert written == {"MODELS": Setting("MODELS", "[]", 1)}
