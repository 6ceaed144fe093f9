"""Settings of the embedding service, read from environment variables."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kit.service.service import ServiceSettings

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class EmbeddingSettings(ServiceSettings):
    """Settings of one embedding or reranking service."""

    port: int = Field(8002, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    service_name: str = Field("embedding", description="this service's name in the gateway and the logs")
    model: str = Field(
        "minilm", description="a name, alias or repository of the catalogue, of kind embedding or reranker"
    )
    engine: Literal["auto", "openvino", "torch"] = Field(
        "auto",
        description="auto, openvino or torch; auto is openvino on a CPU if its results match PyTorch's, else torch",
    )
    dtype: Dtype = Field(
        "auto",
        description="auto, float32, float16 or bfloat16; auto is float16 on a GPU, on a CPU bfloat16 if the CPU and "
        "OpenVINO support it, else float32",
    )
    cpu_threads: int = Field(0, ge=0, le=1024, description="CPU threads of the engine, 0 for one per core")
    max_batch_size: int = Field(64, ge=1, le=8192, description="maximum texts per batch")
    max_batch_tokens: int = Field(
        16384, ge=1, description="maximum tokens per batch, including padding; a single text may exceed it"
    )
    max_wait_ms: float = Field(
        2.0,
        ge=0,
        le=1000,
        description="milliseconds to wait for more texts while several clients send requests, 0 to disable",
    )
    max_queue: int = Field(4096, ge=1, description="maximum texts in flight; further requests get a 429")
    max_inputs: int = Field(2048, ge=1, description="maximum texts per request")
    auto_truncate: bool = Field(
        False,
        description="truncate texts over the model's limit instead of rejecting them with a 400; a request's truncate "
        "takes precedence",
    )
    max_body_mb: int = Field(32, ge=1, le=4096, description="maximum body of a request, in MiB")
    max_bodies_mb: int = Field(
        256, ge=1, le=65536, description="maximum of all bodies being read, in MiB; further requests get a 429"
    )

    @model_validator(mode="after")
    def _largest_request_fits(self) -> Self:
        if self.max_bodies_mb < self.max_body_mb:
            raise ValueError(
                f"MAX_BODIES_MB={self.max_bodies_mb} is less than MAX_BODY_MB={self.max_body_mb}: "
                "the largest permitted body would always be rejected"
            )
        if self.max_queue < self.max_inputs:
            raise ValueError(
                f"MAX_QUEUE={self.max_queue} is less than MAX_INPUTS={self.max_inputs}: "
                "a full request would always be rejected"
            )
        return self
