"""What the text and vision service takes from its environment."""

import ipaddress
import re
from typing import Any, Literal

from pydantic import Field, field_validator

from kit.service.service import ServiceSettings
from kit.web.app import CommaSeparated
from services.llm.image_source import ImageSource, Places
from services.llm.images import ImageLimits

EngineName = Literal["auto", "vllm", "transformers"]
# A name or an address (IPv6 without brackets), or everything below a name.
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|[0-9A-Fa-f:.]+")


class LlmSettings(ServiceSettings):
    """Settings of one service with a text model (kind llm) or a text and image model (kind multimodal)."""

    port: int = Field(8000, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    service_name: str = Field(
        "llm-primary", description="the name of this service, as the gateway and the logs show it"
    )
    model: str = Field("qwen", description="a name, alias or repository of the catalogue, kind llm or multimodal")
    engine: EngineName = Field(
        "auto", description="vllm, transformers, or auto: vllm where a CUDA GPU and vllm are there, else transformers"
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description='a JSON object of arguments for the engine ({"max_model_len": 4096}); wins over models.yaml',
    )
    stop_grace: int = Field(
        30,
        ge=0,
        le=3600,
        description="seconds that answers may go on after SIGTERM; then they end with an error. What stops the service "
        "should wait some 20 s longer before it kills",
    )
    cpu_threads: int = Field(
        0, ge=0, le=1024, description="threads that compute on a CPU, 0 for all cores but one (engine transformers)"
    )
    max_body_mb: int = Field(64, ge=1, le=4096, description="MiB of one request's body (engine transformers)")
    max_concurrent: int = Field(
        16, ge=1, le=1024, description="answers generated at once in one batch (engine transformers)"
    )
    max_queue: int = Field(
        64, ge=0, description="requests that may wait beyond those, before one gets a 429 (engine transformers)"
    )
    default_max_tokens: int = Field(
        2048, ge=1, description="tokens of an answer whose request sets no limit (engine transformers)"
    )
    max_images: int = Field(8, ge=1, description="images in one request")
    max_image_mb: int = Field(20, ge=1, description="MiB of one image, still encoded")
    max_image_megapixels: int = Field(40, ge=1, le=80, description="millions of pixels of one image")
    image_hosts: CommaSeparated = Field(
        (),
        description="comma-separated hosts from which images may be fetched by http(s), *.example.org for all below "
        "one; none by default: images come as data URIs",
    )
    image_networks: CommaSeparated = Field(
        (), description="comma-separated private networks (10.1.0.0/16) in which the hosts of IMAGE_HOSTS may be"
    )

    @field_validator("image_hosts", "image_networks", mode="before")
    @classmethod
    def _split_images(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("image_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no host name; no scheme, port or path belongs here")
        return tuple(host.lower() for host in value)

    @field_validator("image_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    def image_source(self) -> ImageSource:
        """Reads images by these settings. Made on the event loop."""
        limits = ImageLimits(self.max_images, self.max_image_mb, self.max_image_megapixels)
        networks = [ipaddress.ip_network(network) for network in self.image_networks]
        return ImageSource(limits, Places(self.image_hosts, networks))
