"""Prometheus metrics of the batcher."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class BatchMetrics:
    """Texts in flight; texts, tokens and duration per batch."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = Gauge("embedding_texts_in_flight", "Texts in flight.", registry=registry)
        self._texts = Histogram(
            "embedding_batch_texts",
            "Texts per computed batch.",
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        )
        self._tokens = Counter(
            "embedding_computed_tokens_total", "Tokens computed, padding included.", registry=registry
        )
        self._seconds = Histogram(
            "embedding_batch_seconds",
            "Seconds to compute a batch.",
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )

    def observe_batch(self, *, texts: int, width: int, seconds: float) -> None:
        """Record a batch of `texts` rows, each padded to `width` tokens."""
        self._texts.observe(texts)
        self._tokens.inc(texts * width)
        self._seconds.observe(seconds)
