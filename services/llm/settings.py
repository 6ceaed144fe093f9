"""Settings of the text and vision service, read from environment variables."""

import ipaddress
import re
from typing import Any, Literal

from pydantic import Field, field_validator

from kit.service.service import ServiceSettings
from kit.web.app import CommaSeparated
from services.llm.images.decoding import ImageLimits
from services.llm.images.source import AllowedSources, ImageSource

EngineName = Literal["auto", "vllm", "transformers"]
# A name, an address (IPv6 without brackets), or *. and a name.
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?|[0-9A-Fa-f:.]+")


class LlmSettings(ServiceSettings):
    """Settings of one service with a text model (kind llm) or a text and image model (kind multimodal)."""

    port: int = Field(8000, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    service_name: str = Field("llm-primary", description="this service's name in the gateway and the logs")
    model: str = Field("qwen", description="a name, alias or repository of the catalogue, of kind llm or multimodal")
    engine: EngineName = Field(
        "auto", description="auto, vllm or transformers; auto is vllm if it is installed and there is a CUDA GPU"
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description='JSON object of engine arguments, such as {"max_model_len": 4096}; overrides models.yaml',
    )
    stop_grace: int = Field(
        30,
        ge=0,
        le=3600,
        description="seconds for responses to finish after SIGTERM; the remaining ones end with an error. Allow about "
        "20 s more before SIGKILL",
    )
    cpu_threads: int = Field(0, ge=0, le=1024, description="CPU threads, 0 for all cores but one (engine transformers)")
    max_body_mb: int = Field(64, ge=1, le=4096, description="maximum body of a request, in MiB (engine transformers)")
    max_concurrent: int = Field(
        16, ge=1, le=1024, description="maximum responses generated in one batch (engine transformers)"
    )
    max_queue: int = Field(
        64, ge=0, description="maximum queued requests beyond those; further ones get a 429 (engine transformers)"
    )
    default_max_tokens: int | None = Field(
        None,
        ge=1,
        description="maximum tokens of a response if the request sets no limit; by default that of models.yaml, else "
        "2048 (engine transformers) or the rest of the context (vllm)",
    )
    max_images: int = Field(8, ge=1, description="maximum images per request")
    max_image_mb: int = Field(20, ge=1, description="maximum size of an encoded image, in MiB")
    max_image_megapixels: int = Field(40, ge=1, le=80, description="maximum size of an image, in millions of pixels")
    image_hosts: CommaSeparated = Field(
        (),
        description="comma-separated hosts from which images may be fetched by http(s), *.example.org for subdomains; "
        "none by default: only data URIs are accepted",
    )
    image_networks: CommaSeparated = Field(
        (), description="comma-separated private networks that IMAGE_HOSTS may resolve to, such as 10.1.0.0/16"
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
                raise ValueError(f"{host!r} is not a host name; omit scheme, port and path")
        return tuple(host.lower() for host in value)

    @field_validator("image_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    def image_source(self) -> ImageSource:
        """Create the image reader. Call it on the event loop."""
        limits = ImageLimits(self.max_images, self.max_image_mb, self.max_image_megapixels)
        networks = [ipaddress.ip_network(network) for network in self.image_networks]
        return ImageSource(limits, AllowedSources(self.image_hosts, networks))
