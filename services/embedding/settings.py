"""What the embedding service takes from its environment."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kit.service.service import ServiceSettings

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


class EmbeddingSettings(ServiceSettings):
    """Settings of one embedding or reranking service."""

    port: int = Field(8002, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    service_name: str = Field("embedding", description="the name of this service, as the gateway and the logs show it")
    model: str = Field("minilm", description="a name, alias or repository of the catalogue, kind embedding or reranker")
    engine: Literal["auto", "openvino", "torch"] = Field(
        "auto",
        description="auto (OpenVINO on a CPU where its numbers agree with PyTorch's, else torch), openvino, torch",
    )
    dtype: Dtype = Field(
        "auto",
        description="auto (float16 on a GPU; on a CPU bfloat16 where OpenVINO and the CPU have it, else float32), "
        "float32, float16 or bfloat16",
    )
    cpu_threads: int = Field(0, ge=0, le=1024, description="threads of the engine on a CPU, 0 for one per core")
    max_batch_size: int = Field(64, ge=1, le=8192, description="texts that the engine computes at once")
    max_batch_tokens: int = Field(
        16384, ge=1, description="tokens, padding included, that the engine computes at once; one text always fits"
    )
    max_wait_ms: float = Field(
        2.0, ge=0, le=1000, description="milliseconds to wait for more texts while several clients ask, 0 for never"
    )
    max_queue: int = Field(4096, ge=1, description="texts in flight, beyond which requests get a 429")
    max_inputs: int = Field(2048, ge=1, description="texts in one request")
    max_body_mb: int = Field(32, ge=1, le=4096, description="MiB of one request's body")
    max_bodies_mb: int = Field(
        256, ge=1, le=65536, description="MiB of bodies being read at once, beyond which requests get a 429"
    )

    @model_validator(mode="after")
    def _largest_request_fits(self) -> Self:
        if self.max_bodies_mb < self.max_body_mb:
            raise ValueError(
                f"MAX_BODIES_MB={self.max_bodies_mb} is less than MAX_BODY_MB={self.max_body_mb}: "
                "the largest request would never fit"
            )
        if self.max_queue < self.max_inputs:
            raise ValueError(
                f"MAX_QUEUE={self.max_queue} is less than MAX_INPUTS={self.max_inputs}: no full request would fit"
            )
        return self
