"""The registry's settings, from environment variables."""

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from kit.config.catalogue import Catalogue
from kit.config.settings import keys_of
from kit.net.retry import RETRY_POLICY, RetryPolicy
from kit.web.app import CommaSeparated, HttpSettings
from kit.web.guard import KeyRing
from registry.hub.client import SourceHub
from registry.safety.policy import Policy


class RegistrySettings(HttpSettings):
    """The registry's settings."""

    port: int = Field(8090, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    store: str = Field(
        "file:~/.local/share/gpu-cluster/registry",
        pattern=r"^(file:.+|s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/?)$",
        description="where models are stored: file:PATH (a folder) or s3://BUCKET",
    )
    s3_endpoint: str = Field("http://127.0.0.1:9000", description="URL of the S3 server as seen from the registry")
    s3_public_endpoint: str | None = Field(
        None, description="URL of the same server as seen from clients outside the registry's network, if different"
    )
    s3_internal_hosts: CommaSeparated = Field(
        ("registry",),
        description="comma-separated host names of the registry inside its network; presigned URLs use S3_ENDPOINT for "
        "requests to these hosts, S3_PUBLIC_ENDPOINT for all others",
    )
    s3_region: str = Field("us-east-1", description="the S3 region")
    s3_access_key: str | None = Field(None, description="the S3 access key; S3_ACCESS_KEY_FILE reads it from a file")
    s3_secret_key: SecretStr | None = Field(
        None, description="the S3 secret key; S3_SECRET_KEY_FILE reads it from a file"
    )
    presigned_seconds: int = Field(
        3600,
        ge=60,
        le=604800,
        description="lifetime of presigned URLs in seconds; `registry gc` keeps blobs younger than this",
    )
    quota_gb: float | None = Field(
        None, gt=0, description="limit on the size of all models in the store, in GB (10^9 bytes)"
    )
    catalogue: Path | None = Field(None, description="path of models.yaml; default: ./models.yaml, if it exists")
    hf_endpoint: str = Field(
        "https://huggingface.co",
        description="URL to mirror from: the Hub, a mirror of it, or another registry",
    )
    mirror_missing: bool = Field(
        False,
        description="yes mirrors a model of the catalogue on the first request for it, which waits for the download; "
        "no, the default, responds with 404",
    )
    hf_token: SecretStr | None = Field(None, description="token for gated models; sent to HF_ENDPOINT only")
    api_keys: SecretStr | None = Field(
        None, description="comma-separated bearer keys, one of which is required for reading; Hub clients send HF_TOKEN"
    )
    jobs: int = Field(2, ge=1, le=32, description="number of models downloaded at once")
    files_per_job: int = Field(4, ge=1, le=32, description="number of files of one model downloaded at once")

    pickle_files: Literal["scan", "allow"] = Field(
        "scan",
        description="scan checks files that may run code when they are loaded (pickles) and refuses a model whose "
        "files do so or cannot be checked; allow accepts them unchecked",
    )
    remote_code: bool = Field(
        False,
        description="yes also mirrors the repositories from which a model's auto_map loads code, and imports folders "
        "and bundles of such models; no refuses the model",
    )
    hf_stall_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="read timeout of HF_ENDPOINT in seconds, after which the request is retried",
    )
    parts_in_flight: int = Field(
        8,
        ge=1,
        le=256,
        description="number of file parts, usually of 16 MiB, fetched at once by all downloads; each is kept in memory",
    )
    bandwidth_mb_per_second: float | None = Field(
        None, gt=0, description="bandwidth limit of all downloads together, in MB (10^6 bytes) per second"
    )

    @field_validator("s3_endpoint", "s3_public_endpoint", "hf_endpoint")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("not a URL of the form http://HOST:PORT")
        return value.rstrip("/")

    def policy(self) -> Policy:
        """What is accepted of a model."""
        return Policy(pickles=self.pickle_files, remote_code=self.remote_code)

    def load_catalogue(self) -> Catalogue:
        """Load the catalogue; empty if none is set and ./models.yaml is missing. Raises SettingsError."""
        path = self.catalogue or Path("models.yaml")
        return Catalogue.load(path) if self.catalogue or path.exists() else Catalogue([])

    def source_hub(self, *, file_retries: RetryPolicy = RETRY_POLICY) -> SourceHub:
        """A client of HF_ENDPOINT."""
        token = self.hf_token.get_secret_value() if self.hf_token else None
        return SourceHub(self.hf_endpoint, token, file_retries=file_retries, read_timeout_s=self.hf_stall_seconds)

    def own_token(self) -> str | None:
        """The bearer token of this machine's commands: the admin token, else the first key. Raises SettingsError."""
        if self.admin_token:
            return self.admin_token.get_secret_value()
        return next(iter(keys_of(self.api_keys, "API_KEYS")), None)

    def key_ring(self) -> KeyRing:
        """The keys that may read. Raises SettingsError if API_KEYS is set and has no key."""
        keys = keys_of(self.api_keys, "API_KEYS")
        if keys and self.admin_token:
            keys.append(self.admin_token.get_secret_value())  # the admin may read, too
        return KeyRing(keys, variable="API_KEYS")
