"""Settings of the transcription service, read from environment variables."""

from typing import Literal

from pydantic import Field

from kit.service.service import ServiceSettings

ComputeType = Literal["auto", "float32", "float16", "bfloat16", "int8", "int8_float16", "int8_float32", "int8_bfloat16"]


class TranscriptionSettings(ServiceSettings):
    """Settings of one transcription service."""

    port: int = Field(8004, ge=1, le=65535, description="the port to listen on, 1 to 65535")
    service_name: str = Field("transcription", description="this service's name in the gateway and the logs")
    model: str = Field("whisper", description="a name, alias or repository of the catalogue, of kind transcription")
    compute_type: ComputeType = Field(
        "auto", description="auto (float16 on a GPU, int8 on a CPU) or a compute type of CTranslate2"
    )
    cpu_threads: int = Field(0, ge=0, le=1024, description="CPU threads of the engine, 0 for one per core")
    beam_size: int = Field(5, ge=1, le=32, description="beam size; 1 is fastest, 5 is Whisper's default")
    batch_size: int = Field(
        8,
        ge=1,
        le=256,
        description="30 s windows per batch for json and text responses, of one long recording or several short ones; "
        "1 disables batches",
    )
    vad_filter: bool = Field(True, description="skip parts without speech; a request's vad_filter takes precedence")
    max_queue: int = Field(
        32, ge=1, description="maximum recordings being uploaded, queued or processed; further requests get a 429"
    )
    max_upload_mb: int = Field(200, ge=1, le=65536, description="maximum body of a request, in MiB")
    max_audio_seconds: int = Field(
        14400, ge=1, description="maximum length of a recording in seconds; an hour takes 115 MB of memory"
    )
