"""MODELS as people write it, into what the current Chat UI needs. Pure.

Chat UI up to 0.9 took its models from MODELS, each with `endpoints`. Since 0.10 it takes them from OPENAI_BASE_URL, our
gateway, and MODELS gives listed ids other faces. So an entry with endpoints becomes such a face: its id is one that the
gateway serves, whatever address it names, and Chat UI's network reaches nothing but the gateway.
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


# What Chat UI checks of an entry. One that does not fit makes it drop all of MODELS without stopping.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_text, "a text"),
    "name": (_is_text, "a text"),
    "displayName": (_is_text, "a text"),
    "description": (_is_text, "a text"),
    "preprompt": (lambda value: isinstance(value, str), "a text"),
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
# Keys of older versions, for which the current one drops all of MODELS; and one that it fetches when it starts.
_DROPPED = {
    "tokenizer": "Chat UI knows it no more",
    "chatPromptTemplate": "the engine applies the model's own",
    "embeddingModel": "Chat UI knows it no more",
    "prepromptUrl": "it would be fetched from outside",
}


@dataclass
class Translated:
    """MODELS for the current Chat UI, what a person should know, and a key found on the way."""

    models: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    api_key: str | None = None


def translate(entries: Iterable[tuple[int, Any]], catalogue: Catalogue, gateway: str) -> Translated:
    """Translate the entries of MODELS, each with its line. `gateway` is the host of OPENAI_BASE_URL.

    Names that cannot chat, and second names of those that can, are hidden unless MODELS says otherwise. Where an entry
    has endpoints, MODELS is the whole list, as it was in the version that this form is for. Raises EnvFileError.
    """
    done = Translated()
    whole = False
    named: dict[str, dict[str, Any]] = {}
    for line, entry in entries:
        _check(line, entry)
        name = str(entry.get("id") or entry["name"]).strip()
        face = {key: value for key, value in entry.items() if key != "endpoints" and key not in _DROPPED}
        done.remarks += [
            f"line {line}: {key} of {name} is left out: {_DROPPED[key]}." for key in entry if key in _DROPPED
        ]
        if "endpoints" in entry:
            whole = True
            _take_endpoints(done, line, name, entry["endpoints"], gateway)
        if name != VIRTUAL_MODEL and catalogue.find(name) is None:
            done.remarks.append(
                f"line {line}: models.yaml has no {name}; Chat UI shows it only if a backend of SERVICES lists it."
            )
        named[name] = face
    for name, can_chat, is_first_name in _names(catalogue):
        shown = can_chat and (name in named or (is_first_name and not whole))
        if not shown:
            named.setdefault(name, {"id": name}).setdefault("unlisted", True)
    done.models = list(named.values())
    return done


def _names(catalogue: Catalogue) -> Iterable[tuple[str, bool, bool]]:
    """Every name that the gateway may list, whether it can chat, and whether it is its model's first name."""
    yield VIRTUAL_MODEL, True, True
    for entry in catalogue:
        for name in entry.names:
            yield name, entry.kind in CHAT_KINDS, name == entry.name


def _check(line: int, entry: Any) -> None:
    if not isinstance(entry, dict) or not (entry.get("name") or entry.get("id")):
        raise EnvFileError(line, 'an entry of MODELS is an object with a "name", one that GET /v1/models lists.')
    for key, (fits, takes) in _CHECKS.items():
        if key in entry and not fits(entry[key]):
            raise EnvFileError(line, f"{key} is {entry[key]!r:.60}; it takes {takes}.")


def _take_endpoints(done: Translated, line: int, name: str, endpoints: list[Any], gateway: str) -> None:
    for endpoint in endpoints:
        kind = endpoint.get("type") if isinstance(endpoint, dict) else endpoint
        if kind != "openai":
            raise EnvFileError(
                line,
                f"{name} has an endpoint of type {kind!r:.40}; every model is asked through the gateway. "
                'Write "type": "openai", or leave endpoints out.',
            )
        host = urlsplit(str(endpoint.get("baseURL", ""))).hostname
        if host == gateway:
            done.api_key = done.api_key or endpoint.get("apiKey")
        elif host is not None:
            done.remarks.append(f"line {line}: {name} is asked through the gateway, not at {endpoint['baseURL']}.")
