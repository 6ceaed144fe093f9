"""Translation of a complete chatui.env: defaults, MODELS, API key, microphone. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from chatui.env_file import JSON_SETTINGS, EnvFileError, Setting, items_of, json_of, json_value
from chatui.models import translate
from kit.config.catalogue import VIRTUAL_MODEL, Catalogue

# Placeholder if the gateway has no keys: with an empty one, Chat UI's microphone says "Authentication required".
NO_KEY = "none"


@dataclass(frozen=True)
class Outcome:
    """The settings to write, by name, and remarks for the operator, one line each."""

    settings: dict[str, str]
    remarks: list[str]


def convert(
    written: Mapping[str, Setting], shipped: Mapping[str, Setting], catalogue: Catalogue, keys: Sequence[str]
) -> Outcome:
    """Merge the operator's settings (`written`) over the `shipped` ones and translate them; `keys` are the gateway's.

    Raises EnvFileError for an invalid setting.
    """
    settings = {**shipped, **written}
    values = {name: setting.value for name, setting in settings.items()}
    base = settings.get("OPENAI_BASE_URL")
    gateway = urlsplit(base.value).hostname if base else None
    if base is None or gateway is None or not base.value.startswith(("http://", "https://")):
        raise EnvFileError(
            base.line if base else 1, "OPENAI_BASE_URL must be the gateway's URL: http://gateway:8080/v1."
        )
    models = settings.get("MODELS")
    entries = items_of(models) if models and models.value.strip(" `") else []
    translated = translate(entries, catalogue, gateway)
    # No remarks about shipped MODELS that a site does not serve.
    remarks = translated.remarks if "MODELS" in written else []
    values["MODELS"] = json_value(translated.models)
    for name in JSON_SETTINGS & settings.keys() - {"MODELS"}:
        if values[name]:
            values[name] = json_value(json_of(settings[name]))
    given = values.get("OPENAI_API_KEY", "")
    if given in ("", NO_KEY):
        values["OPENAI_API_KEY"] = translated.api_key or (keys[0] if keys else NO_KEY)
    if keys and values["OPENAI_API_KEY"] not in keys:
        remarks.append(
            "OPENAI_API_KEY is not in GATEWAY_API_KEYS: the gateway will reject Chat UI. Use one of those keys."
        )
    for name in ("TASK_MODEL", "TRANSCRIPTION_MODEL"):
        model = values.get(name, "")
        entry = catalogue.find(model)
        if entry is not None:
            values[name] = entry.name  # Chat UI knows the names that the gateway lists
        elif model and model != VIRTUAL_MODEL:
            remarks.append(f"{name}={model:.60} is not in models.yaml.")
    return Outcome(values, remarks)
