"""Prometheus metrics of the recognition queue."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class SpeechMetrics:
    """Recordings in flight, seconds of audio, waiting and processing time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = Gauge(
            "transcription_recordings_in_flight",
            "Recordings being uploaded, queued or processed.",
            registry=registry,
        )
        self.queued = Gauge("transcription_recordings_queued", "Recordings uploaded and waiting.", registry=registry)
        self.waited = Histogram(
            "transcription_wait_seconds", "Seconds a recording waited in the queue.", registry=registry, buckets=BUCKETS
        )
        self._audio = Counter("transcription_audio_seconds_total", "Seconds of audio transcribed.", registry=registry)
        self._took = Histogram(
            "transcription_seconds", "Seconds to transcribe a recording.", registry=registry, buckets=BUCKETS
        )

    def observe_recording(self, *, audio_s: float, took_s: float) -> None:
        """Record a recording of `audio_s` seconds, transcribed in `took_s` seconds."""
        self._audio.inc(audio_s)
        self._took.observe(took_s)
