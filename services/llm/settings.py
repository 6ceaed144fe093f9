"""What the text and vision service takes from its environment."""

from typing import Any, Literal

from pydantic import Field

from kit.service import ServiceSettings

EngineName = Literal["auto", "vllm", "transformers"]


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
    max_images: int = Field(8, ge=1, description="images in one request (engine transformers)")
    max_image_mb: int = Field(20, ge=1, description="MiB of one image, still encoded (engine transformers)")
    max_image_megapixels: int = Field(
        40, ge=1, le=80, description="millions of pixels of one image (engine transformers)"
    )
