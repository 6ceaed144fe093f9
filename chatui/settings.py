"""What the step takes from its environment."""

import ipaddress
from pathlib import Path

from pydantic import Field, SecretStr

from kit.config.settings import Settings, keys_of

# Beside the package, in the repository as in the image.
SHIPPED = Path(__file__).resolve().parents[1] / "chatui.env"


class ChatUiSettings(Settings):
    """The step's settings."""

    chatui_env: Path = Field(SHIPPED, description="the file with Chat UI's settings as a person has written them")
    chatui_shipped: Path = Field(SHIPPED, description="the file that holds what that one leaves out")
    chatui_output: Path = Field(Path("/run/chat-ui/env"), description="the file to write, which Chat UI reads")
    cluster_bind: str = Field("127.0.0.1", description="the address that Chat UI's port is published on")
    catalogue: Path = Field(Path("models.yaml"), description="the path of models.yaml")
    gateway_api_keys: SecretStr | None = Field(
        None, description="the keys that the gateway asks for; Chat UI uses the first where it is given none"
    )

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches Chat UI."""
        try:
            return ipaddress.ip_address(self.cluster_bind).is_loopback
        except ValueError:
            return self.cluster_bind == "localhost"

    def keys(self) -> list[str]:
        """The gateway's keys. Raises SettingsError when GATEWAY_API_KEYS is set but holds none."""
        return keys_of(self.gateway_api_keys, "GATEWAY_API_KEYS")
