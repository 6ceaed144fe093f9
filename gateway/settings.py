"""What the gateway takes from its environment."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from gateway.discovery.target import GRAMMAR, Target, parse_services
from gateway.routing.router import Affinity
from kit.config.settings import keys_of
from kit.web.app import HttpSettings
from kit.web.guard import KeyRing
from kit.web.trusted_hosts import is_network

# The ports of the quick reference.
DEFAULT_SERVICES = parse_services(
    "llm-primary=http://127.0.0.1:8000,llm-secondary=http://127.0.0.1:8001,embedding=http://127.0.0.1:8002,"
    "multimodal=http://127.0.0.1:8003,transcription=http://127.0.0.1:8004"
)


class GatewaySettings(HttpSettings):
    """The gateway's settings. Durations are in seconds, MB are 2**20 bytes."""

    port: int = Field(8080, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    services: Annotated[tuple[Target, ...], NoDecode] = Field(DEFAULT_SERVICES, description=GRAMMAR)
    services_file: Path | None = Field(
        None,
        description="a YAML file with more backends, or all of them where SERVICES is not set; it may change at any "
        "time, and SIGHUP has it read at once. It maps each name to url, kind, models (a list), weight, dns and "
        "optional, as in SERVICES",
    )
    catalogue: Path = Field(Path("models.yaml"), description="the path of models.yaml")
    gateway_api_keys: SecretStr | None = Field(
        None, description="bearer keys that /v1 asks for, separated by commas or line breaks; none lets everybody in"
    )
    cluster_bind: str | None = Field(
        None,
        description="in a container, the IP address on which its port is published outside, since HOST tells nothing "
        "there; off loopback the gateway wants GATEWAY_API_KEYS or ALLOW_UNAUTHENTICATED=yes, and takes the same of "
        "HOST where this is unset",
    )
    allow_unauthenticated: bool = Field(
        False, description="yes lets everybody who reaches the gateway use it without a key; no by default"
    )
    backend_keys: SecretStr | None = Field(
        None, description="bearer keys to send to backends, NAME=KEY separated by commas or line breaks"
    )

    workers: int = Field(
        1, ge=1, le=64, description="processes that serve the port together, about one for each free CPU core, 1 to 64"
    )

    poll_interval: float = Field(
        2.0,
        gt=0,
        le=300,
        description="seconds between two health polls of a backend, two DNS lookups of one, two looks at SERVICES_FILE",
    )
    poll_timeout: float = Field(
        1.0, gt=0, le=60, description="seconds that a backend has to answer a health poll, and the resolver a lookup"
    )
    connect_timeout: float = Field(2.0, gt=0, le=60, description="seconds to reach a backend before trying another")
    first_byte_timeout: float = Field(
        600.0, gt=0, description="seconds that a backend has to begin its answer, and to finish one not streamed"
    )
    first_byte_floor: float = Field(
        20.0,
        gt=0,
        description="seconds that a backend has at least to begin its answer, before a request goes elsewhere because "
        "that takes several times longer than such prompts took before",
    )
    stream_idle_timeout: float = Field(
        120.0, gt=0, description="seconds without a byte after which a begun answer counts as dead"
    )
    stream_idle_floor: float = Field(
        20.0,
        gt=0,
        description="seconds without a byte that a stream may have at least, before it goes on elsewhere because its "
        "backend never paused for nearly as long before",
    )
    quarantine: float = Field(
        600.0,
        gt=0,
        description="seconds for which a request is refused after backends have died of it (request_crashed_backend)",
    )
    stuck_after: float = Field(
        20.0,
        gt=0,
        description="seconds without a byte or a token of its own counters, at the least, after which a backend with "
        "work counts as stuck; one that was seen to need longer gets longer, one that answers no poll either less",
    )
    slow_start: float = Field(
        10.0, ge=0, description="seconds over which a backend that was started gets its full share of the requests"
    )
    client_timeout: float = Field(30.0, gt=0, description="seconds that a client may pause in sending or taking")
    keep_alive_timeout: float = Field(75.0, gt=0, description="seconds that an idle client connection stays open")
    max_attempts: int = Field(3, ge=1, le=10, description="backends to try for one request, 1 to 10")

    affinity: Affinity = Field(
        "prefix",
        description="what draws a request to a backend beside its speed: prefix (which one has read the beginning of "
        "this prompt before; sessions count too), session (the conversation that the client names, in x-session-id, "
        "prompt_cache_key or user) or none",
    )
    affinity_load_bound: float = Field(
        2.0,
        ge=1,
        le=100,
        description="how many times the mean of requests in flight a backend may have for affinity to draw to it",
    )

    max_body_mb: int = Field(64, ge=1, le=4096, description="the largest JSON body in MB")
    max_buffered_mb: int = Field(
        1024,
        ge=1,
        description="the most memory that all JSON bodies on their way may take, in MB; a client is asked to come back "
        "(429) beyond it",
    )
    max_upload_mb: int = Field(2048, ge=1, le=65536, description="the largest audio upload in MB")
    max_head_kb: int = Field(64, ge=4, le=1024, description="the largest request head (target and headers) in KB")
    spool_dir: Path | None = Field(None, description="a folder for uploads on their way, by default the system's")
    spool_quota_mb: int = Field(8192, ge=1, description="the most that all uploads on their way may take, in MB")

    @field_validator("services", mode="before")
    @classmethod
    def _services(cls, value: object) -> object:
        return parse_services(value) if isinstance(value, str) else value

    @field_validator("cluster_bind")
    @classmethod
    def _cluster_bind(cls, value: str | None) -> str | None:
        # Compose writes IPv6 in brackets before a port.
        return None if value is None else str(ipaddress.ip_address(value.strip("[]")))

    @model_validator(mode="after")
    def _open_on_purpose_only(self) -> "GatewaySettings":
        if self.is_local or self.allow_unauthenticated or self.key_ring():
            return self
        if self.cluster_bind is not None:
            where, way = f"{self.cluster_bind} (CLUSTER_BIND)", "CLUSTER_BIND=127.0.0.1"
        else:
            where = f"{self.host} (HOST)"
            way = "HOST=127.0.0.1 (or, in a container, by CLUSTER_BIND=127.0.0.1 and a port published there)"
        raise ValueError(
            f"The gateway would let everybody who reaches {where} use it without a key: set GATEWAY_API_KEYS (or "
            f"GATEWAY_API_KEYS_FILE), or keep it on this machine by {way}, or allow it by ALLOW_UNAUTHENTICATED=yes"
        )

    @field_validator("backend_keys")
    @classmethod
    def _backend_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(_printable(key) for key in _pairs(value).values()):
            raise ValueError("every entry is NAME=KEY, the key without spaces")
        return value

    @property
    def listed_services(self) -> tuple[Target, ...]:
        """The backends of SERVICES. Its default is for a gateway that is told of none, by no means."""
        told_elsewhere = self.services_file is not None and "services" not in self.model_fields_set
        return () if told_elsewhere else self.services

    @model_validator(mode="after")
    def _one_body_fits(self) -> "GatewaySettings":
        if self.max_buffered_mb < self.max_body_mb * self.workers:
            raise ValueError(
                f"MAX_BUFFERED_MB={self.max_buffered_mb} is for all workers together and holds no body of MAX_BODY_MB="
                f"{self.max_body_mb} in each of WORKERS={self.workers}: raise it, or lower one of the others"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the gateway."""
        reached_at = self.cluster_bind or self.host
        try:
            return ipaddress.ip_address(reached_at).is_loopback
        except ValueError:
            return reached_at == "localhost"

    def trusted_places(self) -> tuple[str, ...]:
        """What counts of ADMIN_TRUSTED_NETWORKS: only networks where others than this machine come in.

        They would all come from `docker-host`, or through the proxy whose name is trusted.
        """
        places = super().trusted_places()
        return places if self.is_local else tuple(place for place in places if is_network(place))

    def key_ring(self) -> KeyRing:
        """The keys that clients of /v1 must send. Raises SettingsError when GATEWAY_API_KEYS is set but holds none."""
        return KeyRing(keys_of(self.gateway_api_keys, "GATEWAY_API_KEYS"), variable="GATEWAY_API_KEYS")

    def keys_of_backends(self) -> dict[str, str]:
        """The key to send, by backend name."""
        return _pairs(self.backend_keys) if self.backend_keys else {}


def _pairs(secret: SecretStr) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for entry in re.split(r"[,\n]", secret.get_secret_value()):
        name, _, key = entry.strip().partition("=")
        if name:
            pairs[name.strip()] = key.strip()
    return pairs


def _printable(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key
