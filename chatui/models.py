"""Translation of MODELS for the current Chat UI. Pure.

Up to 0.9, Chat UI read its models from MODELS, each with `endpoints`. Since 0.10 it reads them from OPENAI_BASE_URL,
our gateway, and MODELS overrides the display of listed ids. So an entry with endpoints becomes such an override of an
id that the gateway serves; its addresses are ignored, because Chat UI's network reaches only the gateway. The gateway
lists a model once: an entry with another of its names overrides the one that is listed, and shows its own name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from chatui.env_file import EnvFileError
from kit.config.catalogue import VIRTUAL_MODEL, Catalogue

CHAT_KINDS = ("llm", "multimodal")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_url(value: Any) -> bool:
    return isinstance(value, str) and bool(urlsplit(value).scheme and urlsplit(value).netloc)


# Chat UI's own schema of an entry. One invalid entry makes it ignore all of MODELS without an error.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_text, "a string"),
    "name": (_is_text, "a string"),
    "displayName": (_is_text, "a string"),
    "description": (_is_text, "a string"),
    "preprompt": (lambda value: isinstance(value, str), "a string"),
    "logoUrl": (_is_url, "a URL"),
    "websiteUrl": (_is_url, "a URL"),
    "modelUrl": (_is_url, "a URL"),
    "multimodal": (_is_flag, "true or false"),
    "unlisted": (_is_flag, "true or false"),
    "supportsTools": (_is_flag, "true or false"),
    "supportsReasoning": (_is_flag, "true or false"),
    "supportsArtifacts": (_is_flag, "true or false"),
    "parameters": (lambda value: isinstance(value, dict), "an object"),
    "endpoints": (lambda value: isinstance(value, list), "a list"),
}
# Keys of older versions, which make the current one ignore all of MODELS; and one that it would fetch at its start.
_DROPPED = {
    "tokenizer": "Chat UI no longer supports it",
    "chatPromptTemplate": "the engine applies the model's own",
    "embeddingModel": "Chat UI no longer supports it",
    "prepromptUrl": "it would be fetched from outside",
}


@dataclass
class Translated:
    """MODELS for the current Chat UI, remarks for the operator, and an API key found in an endpoint."""

    models: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    api_key: str | None = None


def translate(entries: Iterable[tuple[int, Any]], catalogue: Catalogue, gateway: str) -> Translated:
    """Translate the entries of MODELS, each with its line. `gateway` is the host of OPENAI_BASE_URL.

    Models that cannot chat are hidden unless MODELS shows them. If an entry has endpoints, MODELS is the whole list, as
    in Chat UI up to 0.9. Raises EnvFileError.
    """
    done = Translated()
    is_complete = False
    named: dict[str, dict[str, Any]] = {}
    for line, entry in entries:
        _check(line, entry)
        name = str(entry.get("id") or entry["name"]).strip()
        override = {key: value for key, value in entry.items() if key != "endpoints" and key not in _DROPPED}
        done.remarks += [f"line {line}: ignored {key} of {name}: {_DROPPED[key]}." for key in entry if key in _DROPPED]
        if "endpoints" in entry:
            is_complete = True
            _read_endpoints(done, line, name, entry["endpoints"], gateway)
        model = catalogue.find(name)
        if name != VIRTUAL_MODEL and model is None:
            done.remarks.append(
                f"line {line}: {name} is not in models.yaml; Chat UI shows it only if a backend of SERVICES lists it."
            )
        if model is None or model.name == name:
            named[name] = override
        elif model.name not in named:
            listed = {key: model.name for key in ("id", "name") if key in override}
            named[model.name] = {"displayName": name} | override | listed
    for name, can_chat in ((VIRTUAL_MODEL, True), *((entry.name, entry.kind in CHAT_KINDS) for entry in catalogue)):
        shown = can_chat and (name in named or not is_complete)
        if not shown:
            named.setdefault(name, {"id": name}).setdefault("unlisted", True)
    done.models = list(named.values())
    return done


def _check(line: int, entry: Any) -> None:
    if not isinstance(entry, dict) or not (entry.get("name") or entry.get("id")):
        raise EnvFileError(line, 'an entry of MODELS must be an object with a "name" that GET /v1/models lists.')
    for key, (is_valid, expected) in _CHECKS.items():
        if key in entry and not is_valid(entry[key]):
            raise EnvFileError(line, f"{key} is {entry[key]!r:.60}, not {expected}.")


def _read_endpoints(done: Translated, line: int, name: str, endpoints: list[Any], gateway: str) -> None:
    for endpoint in endpoints:
        kind = endpoint.get("type") if isinstance(endpoint, dict) else endpoint
        if kind != "openai":
            raise EnvFileError(
                line,
                f"{name} has an endpoint of type {kind!r:.40}; requests go through the gateway only. "
                'Write "type": "openai", or leave endpoints out.',
            )
        host = urlsplit(str(endpoint.get("baseURL", ""))).hostname
        if host == gateway:
            done.api_key = done.api_key or endpoint.get("apiKey")
        elif host is not None:
            done.remarks.append(f"line {line}: requests for {name} go to the gateway, not to {endpoint['baseURL']}.")
