"""What the queue tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class SpeechMetrics:
    """Recordings on their way, seconds of audio heard, and how long that took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = Gauge(
            "transcription_recordings_in_flight",
            "Recordings being uploaded, waiting or being heard.",
            registry=registry,
        )
        self.queued = Gauge(
            "transcription_recordings_queued", "Recordings uploaded whose turn has not come.", registry=registry
        )
        self.waited = Histogram(
            "transcription_wait_seconds", "Seconds before a recording's turn.", registry=registry, buckets=BUCKETS
        )
        self._audio = Counter("transcription_audio_seconds_total", "Seconds of audio heard.", registry=registry)
        self._took = Histogram(
            "transcription_seconds", "Seconds that hearing a recording took.", registry=registry, buckets=BUCKETS
        )

    def heard(self, *, audio_s: float, took_s: float) -> None:
        """Count one recording of `audio_s` seconds that took `took_s` seconds."""
        self._audio.inc(audio_s)
        self._took.observe(took_s)
