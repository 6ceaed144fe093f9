"""chatui.env into what Chat UI reads: the shipped file, the blocks of the quick reference, keys, old forms."""

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
# The blocks of "Chat UI Integration", as they stand there.
SECTION = (ROOT / "docs" / "quick-reference.md").read_text(encoding="utf-8").partition("## Chat UI Integration")[2]
BLOCKS = re.findall(r"```env\n(.*?)```", SECTION.partition("\n## ")[0], re.DOTALL)


def converted(text: str, *keys: str) -> Outcome:
    """What the step makes of a file that holds `text` and nothing else."""
    return convert(read(text), SHIPPED, CATALOGUE, keys)


def faces(outcome: Outcome) -> dict[str, Model]:
    """The models as Chat UI has them when every model of the catalogue is served."""
    names = ["cluster", *(name for entry in CATALOGUE for name in entry.names)]
    listed: dict[str, Any] = {"data": [{"id": name} for name in names]}
    return models_of(listed, json.loads(outcome.settings["MODELS"]))


def shown(outcome: Outcome) -> list[str]:
    """The names that Chat UI shows, in order."""
    return [model.id for model in faces(outcome).values() if not model.unlisted]


def test_shipped_file() -> None:
    """It converts without a remark: the models to chat with are shown, the others and all second names hidden."""
    outcome = convert(SHIPPED, SHIPPED, CATALOGUE, ())
    assert outcome.remarks == []
    assert shown(outcome) == ["cluster", "qwen", "tinyllama", "llava"]
    assert faces(outcome)["qwen"].display_name == "Qwen (fast)"
    assert faces(outcome)["llava"].multimodal
    settings = outcome.settings
    assert settings["OPENAI_BASE_URL"] == "http://gateway:8080/v1"
    assert settings["TRANSCRIPTION_BASE_URL"] == "http://gateway:8080/transcribe"
    assert CATALOGUE.resolve(settings["TRANSCRIPTION_MODEL"]).kind == "transcription"
    assert settings["OPENAI_API_KEY"] == "none"


def test_shipped_file_names_no_place_outside() -> None:
    """Every address in it is a service of the stack."""
    hosts = {match for setting in SHIPPED.values() for match in re.findall(r"\w+://([\w.-]+)", setting.value)}
    assert hosts == {"gateway", "mongo"}


def test_both_blocks_are_there() -> None:
    """The tests below are about the text of the document itself."""
    assert [block.count('"name"') for block in BLOCKS] == [1, 2]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_first_block_of_the_quick_reference(end: str) -> None:
    """Pasted alone, it shows the cluster under the name it gives; everything else is as shipped."""
    outcome = converted(BLOCKS[0].replace("\n", end))
    assert shown(outcome) == ["cluster"]
    assert faces(outcome)["cluster"].display_name == "Multi-GPU Cluster"
    assert outcome.remarks == []
    assert outcome.settings == convert(SHIPPED, SHIPPED, CATALOGUE, ()).settings | {
        "MODELS": outcome.settings["MODELS"]
    }


def test_second_block_of_the_quick_reference() -> None:
    """Pasted alone, it shows the two models, asked through the gateway, and says so."""
    outcome = converted(BLOCKS[1])
    assert shown(outcome) == ["qwen", "llava"]
    assert faces(outcome)["qwen"] == Model("qwen", "Qwen (Fast)")
    assert faces(outcome)["llava"] == Model("llava", "LLaVA Vision", multimodal=True)
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
    """The user's key, else one of an old endpoint, else the gateway's first; never empty, for the microphone's sake."""
    outcome = converted(text, *keys)
    assert outcome.settings["OPENAI_API_KEY"] == key
    assert outcome.remarks == []


def test_wrong_key_is_told_and_not_shown() -> None:
    """A key that the gateway will refuse is remarked on without being printed."""
    (remark,) = converted("OPENAI_API_KEY=sk-wrong", "sk-right").remarks
    assert "GATEWAY_API_KEYS" in remark
    assert "sk-" not in remark


def models(*entries: dict[str, Any]) -> str:
    return "MODELS=" + json.dumps(entries)


def test_names_that_are_asked_for_are_shown() -> None:
    """A second name, once written down, is shown; what cannot chat only when told so."""
    outcome = converted(
        models({"name": "Qwen/Qwen2.5-0.5B-Instruct"}, {"id": "embedding", "displayName": "E"}, {"id": "whisper",
               "unlisted": False})
    )  # fmt: skip
    assert set(shown(outcome)) == {"cluster", "qwen", "tinyllama", "llava", "Qwen/Qwen2.5-0.5B-Instruct", "whisper"}


def test_names_that_nobody_knows() -> None:
    """A name outside models.yaml is passed on, and told."""
    outcome = converted(models({"name": "gpt-9"}) + "\nTASK_MODEL=gpt-8\nTRANSCRIPTION_MODEL=ears")
    assert "gpt-9" in outcome.settings["MODELS"]
    assert [name for remark in outcome.remarks for name in re.findall(r"gpt-\d|ears", remark)] == [
        "gpt-9", "gpt-8", "ears",
    ]  # fmt: skip


def test_site_without_a_shipped_model() -> None:
    """What the shipped MODELS names and models.yaml does not is no reason for a remark."""
    only = Catalogue([entry for entry in CATALOGUE if entry.name in ("qwen", "whisper")])
    assert convert(read("PUBLIC_APP_NAME=Ours"), SHIPPED, only, ()).remarks == []


def test_keys_of_older_versions_are_left_out() -> None:
    """One of them would make Chat UI drop all of MODELS."""
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
        ("MODELS={}", 1, "no list"),
        ("USAGE_LIMITS='{'", 1, "USAGE_LIMITS is not JSON"),
    ],
)
def test_what_cannot_be(text: str, line: int, says: str) -> None:
    """A setting for which Chat UI would fail, or silently drop others, is refused with its line."""
    with pytest.raises(EnvFileError, match=f"^line {line}: .*{re.escape(says)}"):
        converted(text)


@pytest.mark.parametrize("empty", ["MODELS=", "MODELS=[]", "MODELS=``"])
def test_no_models(empty: str) -> None:
    """Without faces every model that can chat is shown under its own name."""
    assert shown(converted(empty)) == ["cluster", "qwen", "tinyllama", "llava"]


def test_every_setting_of_the_user_arrives() -> None:
    """What the step does not know it passes on; what is left out is as shipped."""
    outcome = converted("PUBLIC_APP_NAME='Our chat'\nMY_OWN=1\nMCP_SERVERS=[\n]")
    assert outcome.settings["PUBLIC_APP_NAME"] == "Our chat"
    assert (outcome.settings["MY_OWN"], outcome.settings["MCP_SERVERS"]) == ("1", "[]")
    assert outcome.settings.keys() == SHIPPED.keys() | {"MY_OWN"}


def test_settings_stay_what_they_are() -> None:
    """Converting changes neither file."""
    written = {"MODELS": Setting("MODELS", "[]", 1)}
    convert(written, SHIPPED, CATALOGUE, ("k",))
    assert written == {"MODELS": Setting("MODELS", "[]", 1)}
