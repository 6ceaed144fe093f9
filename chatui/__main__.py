"""`python -m chatui`: write Chat UI's settings file. Exit status 0, or 2 with a message that says what to fix."""

import ipaddress
import os
import sys
from pathlib import Path

from pydantic import Field, SecretStr

from chatui.env_file import EnvFileError, Setting, read, render
from chatui.translation import convert
from kit.config.catalogue import Catalogue
from kit.config.settings import Settings, SettingsError, keys_of, load_settings

# Next to the package, in the repository and in the image.
SHIPPED = Path(__file__).resolve().parents[1] / "chatui.env"


class ChatUiSettings(Settings):
    """See the field descriptions."""

    chatui_env: Path = Field(SHIPPED, description="the operator's chatui.env")
    chatui_shipped: Path = Field(SHIPPED, description="the shipped chatui.env, for settings that the operator's lacks")
    chatui_output: Path = Field(Path("/run/chat-ui/env"), description="the file to write, for Chat UI")
    cluster_bind: str = Field("127.0.0.1", description="the address that Chat UI's port is published on")
    catalogue: Path = Field(Path("models.yaml"), description="the path of models.yaml")
    gateway_api_keys: SecretStr | None = Field(
        None, description="the gateway's API keys; Chat UI uses the first unless OPENAI_API_KEY names another"
    )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach Chat UI."""
        try:
            return ipaddress.ip_address(self.cluster_bind).is_loopback
        except ValueError:
            return self.cluster_bind == "localhost"


def main() -> int:
    """Translate the file; return the exit status."""
    try:
        settings = load_settings(ChatUiSettings)
        catalogue = Catalogue.load(settings.catalogue)
        shipped = _read(settings.chatui_shipped)
        written = shipped if settings.chatui_env == settings.chatui_shipped else _read(settings.chatui_env)
        keys = keys_of(settings.gateway_api_keys, "GATEWAY_API_KEYS")
        try:
            outcome = convert(written, shipped, catalogue, keys)
            text = render(outcome.settings)
        except (EnvFileError, ValueError) as error:
            raise SettingsError(f"{settings.chatui_env.name}, {error}") from None
        _write(settings.chatui_output, text)
    except SettingsError as error:
        print(f"chatui: {error}", file=sys.stderr)
        return 2
    if not settings.is_local and not outcome.settings.get("OPENID_CLIENT_ID"):
        print(
            f"chatui: note: Chat UI is published on {settings.cluster_bind} without a login: everyone who can reach it "
            "can use the cluster. Set OPENID_CLIENT_ID and OPENID_CLIENT_SECRET for a login, or unset CLUSTER_BIND."
        )
    for remark in outcome.remarks:
        print(f"chatui: note: {remark}")
    print(f"chatui: {len(outcome.settings)} settings of {settings.chatui_env.name} are ready for Chat UI")
    return 0


def _read(path: Path) -> dict[str, Setting]:
    try:
        return read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read: {error.strerror}. It should be mounted from chatui.env."
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text. Save it as UTF-8.") from error
    except EnvFileError as error:
        raise SettingsError(f"{path.name}, {error}") from None


def _write(path: Path, text: str) -> None:
    """Write the file atomically, readable for owner and group only: it contains a key."""
    draft = path.with_name(f".{path.name}.new")
    try:
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}. Check the volume of Chat UI.") from error


if __name__ == "__main__":
    sys.exit(main())
