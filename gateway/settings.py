"""The gateway's settings, from its environment."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from gateway.discovery.target import GRAMMAR, Target, parse_services
from gateway.routing.router import Affinity
from kit.config.settings import keys_of
from kit.web.app import CommaSeparated, HttpSettings
from kit.web.guard import KeyRing
from kit.web.trusted_hosts import is_network

# The default ports of the services.
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
        description="a YAML file with more backends, or with all of them if SERVICES is not set; reloaded when it "
        "changes, and at SIGHUP. It maps each name to url, kind, models (a list), weight, dns and optional, as in "
        "SERVICES",
    )
    catalogue: Path = Field(Path("models.yaml"), description="the path of models.yaml")
    gateway_api_keys: SecretStr | None = Field(
        None,
        description="bearer keys that /v1 requires, separated by commas or line breaks; if unset, none is required",
    )
    cluster_bind: str | None = Field(
        None,
        description="in a container, the IP address on which its port is published outside, where HOST has no meaning; "
        "unless it is loopback, GATEWAY_API_KEYS or ALLOW_UNAUTHENTICATED=yes is required; if unset, the same applies "
        "to HOST",
    )
    allow_unauthenticated: bool = Field(
        False, description="yes allows everybody who reaches the gateway to use it without a key; default no"
    )
    status_trusted_networks: CommaSeparated = Field(
        (),
        description="comma-separated sources, as in ADMIN_TRUSTED_NETWORKS, that read /services, /gpu-stats and "
        "/metrics without a key, in addition to those; 0.0.0.0/0 for everybody",
    )
    backend_keys: SecretStr | None = Field(
        None, description="bearer keys to send to backends, NAME=KEY separated by commas or line breaks"
    )

    workers: int = Field(
        1, ge=1, le=64, description="processes that serve the port together, about one per free CPU core, 1 to 64"
    )

    poll_interval: float = Field(
        2.0,
        gt=0,
        le=300,
        description="seconds between health probes of a backend, between DNS lookups, and checks of SERVICES_FILE",
    )
    poll_timeout: float = Field(
        1.0, gt=0, le=60, description="timeout of a health probe and of a DNS lookup, in seconds"
    )
    connect_timeout: float = Field(
        2.0, gt=0, le=60, description="timeout to connect to a backend before another is tried, in seconds"
    )
    first_byte_timeout: float = Field(
        600.0,
        gt=0,
        description="longest timeout for the first byte of a response, or all of it if not streamed, in seconds",
    )
    first_byte_floor: float = Field(
        20.0,
        gt=0,
        description="shortest timeout for the first byte of a response, in seconds; in between, it is a multiple "
        "of the time that such prompts took before, and then another backend is tried",
    )
    stream_idle_timeout: float = Field(
        120.0, gt=0, description="longest gap between bytes of a response before it counts as failed, in seconds"
    )
    stream_idle_floor: float = Field(
        20.0,
        gt=0,
        description="shortest gap between bytes of a stream before it resumes on another backend, in seconds; the "
        "limit is a multiple of the backend's longest gap before",
    )
    quarantine: float = Field(
        600.0,
        gt=0,
        description="seconds for which a request that has crashed backends is refused (request_crashed_backend)",
    )
    stuck_after: float = Field(
        20.0,
        gt=0,
        description="shortest time without a byte or progress in its metrics after which a backend with requests "
        "counts as stuck, in seconds; longer for one that has needed longer, shorter if it fails health probes too",
    )
    slow_start: float = Field(
        10.0, ge=0, description="seconds over which a restarted backend ramps up to its full share of the requests"
    )
    client_timeout: float = Field(
        30.0,
        gt=0,
        description="timeout for a client that stops receiving or sends its body at less than 1 KB/s, in seconds",
    )
    keep_alive_timeout: float = Field(75.0, gt=0, description="seconds that an idle client connection stays open")
    max_attempts: int = Field(3, ge=1, le=10, description="backends to try for one request, 1 to 10")

    affinity: Affinity = Field(
        "prefix",
        description="affinity of requests to a backend: prefix (the backend that has read the beginning of the prompt "
        "before; sessions count too), session (the conversation that the client names in x-session-id, "
        "prompt_cache_key or user) or none",
    )
    affinity_load_bound: float = Field(
        2.0,
        ge=1,
        le=100,
        description="the most requests in flight at a backend that affinity may choose, as a multiple of the mean",
    )

    max_body_mb: int = Field(64, ge=1, le=4096, description="the largest JSON body in MB")
    max_buffered_mb: int = Field(
        1024,
        ge=1,
        description="memory limit for all request bodies in flight, in MB; beyond it, requests get 429. One client "
        "holds at most three quarters of it, and an eighth is reserved for bodies up to 64 KB",
    )
    max_upload_mb: int = Field(2048, ge=1, le=65536, description="the largest audio upload in MB")
    max_head_kb: int = Field(64, ge=4, le=1024, description="the largest request head (target and headers) in KB")
    spool_dir: Path | None = Field(
        None, description="a folder for uploads in flight; default: the system's temporary folder"
    )
    spool_quota_mb: int = Field(8192, ge=1, description="disk limit for all uploads in flight, in MB")

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
    def _require_keys_unless_local(self) -> "GatewaySettings":
        if self.is_local or self.allow_unauthenticated or self.key_ring():
            return self
        if self.cluster_bind is not None:
            where, way = f"{self.cluster_bind} (CLUSTER_BIND)", "CLUSTER_BIND=127.0.0.1"
        else:
            where = f"{self.host} (HOST)"
            way = "HOST=127.0.0.1 (or, in a container, by CLUSTER_BIND=127.0.0.1 and a port published there)"
        raise ValueError(
            f"The gateway would let everybody who reaches {where} use it without a key: set GATEWAY_API_KEYS (or "
            f"GATEWAY_API_KEYS_FILE), or restrict it to this machine with {way}, or set ALLOW_UNAUTHENTICATED=yes"
        )

    @field_validator("backend_keys")
    @classmethod
    def _backend_keys(cls, value: SecretStr | None) -> SecretStr | None:
        for key in _pairs(value).values() if value is not None else ():
            if not re.fullmatch(r"[!-~]+", key):
                raise ValueError("every entry is NAME=KEY, the key without spaces")
        return value

    @property
    def listed_services(self) -> tuple[Target, ...]:
        """The backends of SERVICES. Its default applies only without SERVICES_FILE."""
        only_file = self.services_file is not None and "services" not in self.model_fields_set
        return () if only_file else self.services

    @model_validator(mode="after")
    def _require_space_for_a_body(self) -> "GatewaySettings":
        if self.max_buffered_mb < self.max_body_mb * self.workers:
            raise ValueError(
                f"MAX_BUFFERED_MB={self.max_buffered_mb} is too small for a body of MAX_BODY_MB={self.max_body_mb} in "
                f"each of WORKERS={self.workers}: raise it, or lower one of the others"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether the gateway is reachable from this machine only."""
        address = self.cluster_bind or self.host
        try:
            return ipaddress.ip_address(address).is_loopback
        except ValueError:
            return address == "localhost"

    def trusted_places(self) -> tuple[str, ...]:
        """Return the effective ADMIN_TRUSTED_NETWORKS: only networks if other machines can connect.

        Names are excluded then: all other machines would come from `docker-host` or through the trusted proxy.
        """
        places = super().trusted_places()
        return places if self.is_local else tuple(place for place in places if is_network(place))

    def key_ring(self) -> KeyRing:
        """Return the keys for clients of /v1. Raises SettingsError if GATEWAY_API_KEYS is set but has no key."""
        return KeyRing(keys_of(self.gateway_api_keys, "GATEWAY_API_KEYS"), variable="GATEWAY_API_KEYS")

    def keys_of_backends(self) -> dict[str, str]:
        """Return the keys to send, by backend name."""
        return _pairs(self.backend_keys) if self.backend_keys else {}


def _pairs(secret: SecretStr) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for entry in re.split(r"[,\n]", secret.get_secret_value()):
        name, _, key = entry.strip().partition("=")
        if name:
            pairs[name.strip()] = key.strip()
    return pairs
