"""What the registry takes from its environment."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from kit.config.catalogue import Catalogue
from kit.config.settings import keys_of
from kit.web.app import CommaSeparated, HttpSettings
from kit.web.guard import KeyRing


class RegistrySettings(HttpSettings):
    """The registry's settings."""

    port: int = Field(8090, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    store: str = Field(
        "file:~/.local/share/gpu-cluster/registry",
        pattern=r"^(file:.+|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/?)$",
        description="where models are kept: file:PATH (a folder) or s3://BUCKET",
    )
    s3_endpoint: str = Field("http://127.0.0.1:9000", description="the S3 server as the registry reaches it, a URL")
    s3_public_endpoint: str | None = Field(
        None, description="the same server as clients outside the registry's network reach it, if that differs, a URL"
    )
    s3_internal_hosts: CommaSeparated = Field(
        ("registry",),
        description="comma-separated names by which clients inside the registry's network call it; they get "
        "S3_ENDPOINT's URLs, all others S3_PUBLIC_ENDPOINT's",
    )
    s3_region: str = Field("us-east-1", description="the region, as the S3 server names it")
    s3_access_key: str | None = Field(None, description="the S3 user; S3_ACCESS_KEY_FILE reads it from a file")
    s3_secret_key: SecretStr | None = Field(
        None, description="the S3 password; S3_SECRET_KEY_FILE reads it from a file"
    )
    presigned_seconds: int = Field(
        3600,
        ge=60,
        le=604800,
        description="how long the URLs are good by which clients read from S3; `registry gc` spares what is younger",
    )
    quota_gb: float | None = Field(
        None, gt=0, description="the most that all models may take in the store, in GB (10^9 bytes)"
    )
    catalogue: Path | None = Field(
        None, description="the path of models.yaml; without it ./models.yaml if there is one"
    )
    hf_endpoint: str = Field(
        "https://huggingface.co",
        description="where to mirror from: the Hub, a mirror of it, or another registry, a URL",
    )
    mirror_missing: bool = Field(
        False,
        description="yes mirrors a model of the catalogue when it is first asked for, and who asks waits for it; no, "
        "the default, answers 404",
    )
    hf_token: SecretStr | None = Field(None, description="a token for gated models; sent to HF_ENDPOINT only")
    api_keys: SecretStr | None = Field(
        None, description="comma-separated bearer keys, one of which reading asks for; Hub clients send HF_TOKEN"
    )
    jobs: int = Field(2, ge=1, le=32, description="how many models to download at once")
    files_per_job: int = Field(4, ge=1, le=32, description="how many files of one model to download at once")

    pickle_files: Literal["scan", "allow"] = Field(
        "scan",
        description="scan looks through files that may run code when they are loaded (pickles) and refuses a model "
        "with one that would, or of which nobody can tell; allow takes them as they are",
    )
    remote_code: bool = Field(
        False,
        description="yes mirrors, with a model, the repositories from which its auto_map takes code; no refuses it",
    )
    hf_stall_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="how long HF_ENDPOINT may be silent in an answer before it is asked again, in seconds",
    )
    parts_in_flight: int = Field(
        8,
        ge=1,
        le=256,
        description="how many parts of files, of 16 MiB mostly, to fetch at once over all downloads; each is held in "
        "memory",
    )
    bandwidth_mb_per_second: float | None = Field(
        None, gt=0, description="the most that all downloads together may take, in MB (10^6 bytes) a second"
    )

    @field_validator("s3_internal_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("s3_endpoint", "s3_public_endpoint", "hf_endpoint")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("not a URL of the form http://HOST:PORT")
        return value.rstrip("/")

    def bandwidth_bytes_per_second(self) -> float | None:
        """The most that all downloads together may take; None is no limit."""
        return None if self.bandwidth_mb_per_second is None else self.bandwidth_mb_per_second * 1e6

    def load_catalogue(self) -> Catalogue:
        """The catalogue, empty when none is named and ./models.yaml is not there. Raises SettingsError."""
        path = self.catalogue or Path("models.yaml")
        return Catalogue.load(path) if self.catalogue or path.exists() else Catalogue([])

    def own_token(self) -> str | None:
        """What this machine's own commands send to the registry: the admin token, else one of the keys."""
        if self.admin_token:
            return self.admin_token.get_secret_value()
        keys = self.api_keys.get_secret_value().split(",") if self.api_keys else []
        return next((key.strip() for key in keys if key.strip()), None)

    def key_ring(self) -> KeyRing:
        """The keys that reading asks for. Raises SettingsError when API_KEYS is set but holds none."""
        keys = keys_of(self.api_keys, "API_KEYS")
        if keys and self.admin_token:
            keys.append(self.admin_token.get_secret_value())  # who may change things may also read them
        return KeyRing(keys, variable="API_KEYS")
