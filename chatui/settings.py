"""Settings of `python -m chatui`, from the environment."""

import ipaddress
from pathlib import Path

from pydantic import Field, SecretStr

from kit.config.settings import Settings

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
