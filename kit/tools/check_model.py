"""Check that a model loads without internet: files, digests, configuration and tokenizer.

Run `python -m kit.tools.check_model [NAME]` in the image and with the environment of the service that runs the model
(NAME: default MODEL). Fetches the files from the registry into the service's cache. Writes a line per check; exits
with 1 if there is a problem.
"""

import argparse
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kit.config.catalogue import Catalogue, Entry
from kit.config.settings import SettingsError, load_settings
from kit.errors import ModelNotFound
from kit.model_files.cache import VerifiedFolder
from kit.model_files.fetch import ModelFilesError
from kit.service.service import ServiceSettings
from kit.tools.check_result import Finding, report

# No request to the internet, whatever the image and the compose file set.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
SENTENCE = "Hello, world."
LOAD_FIX = "Check that the model's kind in models.yaml is right; allow_patterns and ignore_patterns may exclude files."


class NotLoadable(Exception):
    """The files are complete but are not a loadable model; the message says what is missing."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Check one model and write the findings; exits with 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m kit.tools.check_model", description=__doc__)
    parser.add_argument("name", nargs="?", help="the model (default: MODEL)")
    name = parser.parse_args(arguments).name
    try:
        # The required settings that this check does not use.
        given = {"service_name": "check", "port": 1} | ({"model": name} if name else {})
        settings = load_settings(ServiceSettings, **given)
        entry = Catalogue.load(settings.catalogue).resolve(settings.model)
    except (SettingsError, ModelNotFound) as error:
        findings = [Finding("problem", f"model {name or ''}".strip(), str(error), "Check models.yaml, and MODEL.")]
    else:
        findings = check(entry, settings)
    report(findings)


def check(entry: Entry, settings: ServiceSettings) -> list[Finding]:
    """Fetch and verify the files of `entry`, then load its configuration and tokenizer."""
    subject = f"model {entry.name}"
    try:
        folder = fetch_and_verify(entry, settings)
    except ModelFilesError as error:
        return [Finding("problem", subject, str(error), f"Run scripts/offline-setup.sh {entry.name} with internet.")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e9
    findings = [Finding("ok", subject, f"{len(files)} files, {size:.2f} GB in {folder}, every digest verified")]
    os.environ.update(OFFLINE)
    try:
        loaded = _LOADERS[entry.kind](folder)
    except Exception as error:  # noqa: BLE001  # the libraries raise all kinds of errors
        reason = f"does not load: {type(error).__name__}: {error}"
        return [*findings, Finding("problem", subject, reason, LOAD_FIX)]
    return [*findings, Finding("ok", subject, f"{loaded} loaded without internet")]


def fetch_and_verify(entry: Entry, settings: ServiceSettings) -> Path:
    """Return the model's folder after verifying every digest in it. Raises ModelFilesError."""
    stop = threading.Event()
    folder = settings.fetch(entry, _ignore_progress, stop)
    VerifiedFolder(folder).forget()  # so that files verified earlier are verified again
    return settings.fetch(entry, _ignore_progress, stop)


def _ignore_progress(_done: float, _detail: str) -> None:
    pass


def _language_model(folder: Path) -> str:
    _config(folder)
    _tokenize(_transformers().AutoTokenizer.from_pretrained(str(folder), **_LOCAL))
    return "configuration and tokenizer"


def _multimodal(folder: Path) -> str:
    _config(folder)
    processor = _transformers().AutoProcessor.from_pretrained(str(folder), **_LOCAL)
    _tokenize(getattr(processor, "tokenizer", processor))
    return "configuration, processor and tokenizer"


def _transcription(folder: Path) -> str:
    """Whisper for CTranslate2. Without tokenizer.json, faster-whisper would download a tokenizer."""
    import ctranslate2  # type: ignore[import-untyped]  # ships no types
    from tokenizers import Tokenizer  # type: ignore[import-untyped,unused-ignore]  # comes with faster-whisper

    if not ctranslate2.contains_model(str(folder)):
        raise NotLoadable(f"{folder} has no CTranslate2 model (model.bin)")
    if not list(folder.glob("vocabulary.*")):
        raise NotLoadable(f"{folder} has no vocabulary.json or vocabulary.txt")
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise NotLoadable(f"{folder} has no tokenizer.json")
    if not Tokenizer.from_file(str(tokenizer)).encode(SENTENCE).ids:
        raise NotLoadable(f"{tokenizer} returns no tokens for a sentence")
    return "model header, vocabulary and tokenizer"


_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _transformers() -> Any:
    import transformers

    return transformers


def _config(folder: Path) -> None:
    _transformers().AutoConfig.from_pretrained(str(folder), **_LOCAL)


def _tokenize(tokenizer: Any) -> None:
    if not tokenizer(SENTENCE)["input_ids"]:
        raise NotLoadable("the tokenizer returns no tokens for a sentence")


_LOADERS: dict[str, Callable[[Path], str]] = {
    "llm": _language_model,
    "multimodal": _multimodal,
    "embedding": _language_model,
    "reranker": _language_model,
    "transcription": _transcription,
}

if __name__ == "__main__":
    main()
