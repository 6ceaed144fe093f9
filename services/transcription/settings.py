"""What the transcription service takes from its environment."""

from typing import Literal

from pydantic import Field

from kit.service.service import ServiceSettings

ComputeType = Literal["auto", "float32", "float16", "bfloat16", "int8", "int8_float16", "int8_float32", "int8_bfloat16"]


class TranscriptionSettings(ServiceSettings):
    """Settings of one transcription service."""

    port: int = Field(8004, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    service_name: str = Field(
        "transcription", description="the name of this service, as the gateway and the logs show it"
    )
    model: str = Field("whisper", description="a name, alias or repository of the catalogue, kind transcription")
    compute_type: ComputeType = Field(
        "auto", description="auto (float16 on a GPU, int8 on a CPU), or a compute type of CTranslate2"
    )
    cpu_threads: int = Field(0, ge=0, le=1024, description="threads of the engine on a CPU, 0 for one per core")
    beam_size: int = Field(5, ge=1, le=32, description="beams of the search; 1 is fastest, 5 is Whisper's own")
    batch_size: int = Field(
        8,
        ge=1,
        le=256,
        description="windows of 30 s computed at once for json and text, of one long recording or of short ones that "
        "wait together; 1 for one",
    )
    vad_filter: bool = Field(True, description="leave out what is not speech; a request may say vad_filter itself")
    max_queue: int = Field(
        32, ge=1, description="recordings being uploaded, waiting or heard, beyond which requests get a 429"
    )
    max_upload_mb: int = Field(200, ge=1, le=65536, description="MiB of one request's body")
    max_audio_seconds: int = Field(
        14400, ge=1, description="seconds of one recording; an hour takes 115 MB of memory while it is heard"
    )
