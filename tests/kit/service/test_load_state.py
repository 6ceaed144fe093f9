"""How far a load is, and what a request hears meanwhile."""

import math

import pytest

from kit.errors import ApiError, ModelLoading
from kit.service.load_state import Loading


def heard(loading: Loading) -> ApiError:
    refusal = loading.refusal()
    assert refusal is not None
    return refusal


def test_begins() -> None:
    """A fresh load is loading, at zero."""
    now = Loading("qwen").now
    assert (now.status, now.progress, now.detail) == ("loading", 0.0, "starting")


@pytest.mark.parametrize(
    ("reported", "shown"),
    [(0, 0.0), (0.5, 0.5), (1, 1.0), (-3, 0.0), (7, 1.0), (1 / 3, 0.3333), (math.nan, 0.0), (math.inf, 1.0)],
)
def test_progress_stays_between_0_and_1(reported: float, shown: float) -> None:
    """Whatever a loader reports, /health shows a number that JSON has."""
    loading = Loading("qwen")
    loading.report(reported, "x")
    assert loading.now.progress == shown


def test_refusal_while_loading() -> None:
    """A 503 that tells how far it is and when to come again."""
    loading = Loading("qwen")
    loading.report(0.425, "fetching model.safetensors.")
    refusal = heard(loading)
    assert isinstance(refusal, ModelLoading)
    assert refusal.message == "qwen is loading (42 %): fetching model.safetensors."
    assert 1 <= int(refusal.headers["Retry-After"]) <= 60


def test_refusal_at_the_very_beginning() -> None:
    """With nothing to extrapolate from, a few seconds."""
    assert heard(Loading("qwen")).headers["Retry-After"] == "5"


def test_finished() -> None:
    """Nothing is refused any more, and late reports change nothing."""
    loading = Loading("qwen")
    loading.finish()
    loading.report(0.3, "late")
    assert loading.refusal() is None
    assert (loading.now.status, loading.now.progress) == ("healthy", 1.0)


def test_failed() -> None:
    """The reason is kept, for /health and for every request."""
    loading = Loading("qwen")
    loading.report(0.6, "loading")
    loading.fail("CUDA out of memory")
    loading.report(0.7, "late")
    refusal = heard(loading)
    assert (loading.now.status, loading.now.progress, loading.now.detail) == ("failed", 0.6, "CUDA out of memory")
    assert (refusal.status, refusal.code, refusal.headers["Retry-After"]) == (503, "model_failed", "30")
    assert "CUDA out of memory" in refusal.message


def test_death_after_the_load() -> None:
    """An engine that dies later makes the service fail."""
    loading = Loading("qwen")
    loading.finish()
    loading.fail("the engine died")
    assert loading.now.status == "failed"


def test_death_before_the_finish() -> None:
    """An engine that dies in the moment before its load is declared done stays dead."""
    loading = Loading("qwen")
    loading.fail("the engine died")
    loading.finish()
    assert loading.now.status == "failed"
