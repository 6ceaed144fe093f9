"""Load progress, and the error of a request meanwhile."""

import math

import pytest

from kit.errors import ApiError, ModelLoading
from kit.service.load_state import Loading


def heard(loading: Loading) -> ApiError:
    refusal = loading.refusal()
    assert refusal is not None
    return refusal


def test_starts_at_zero() -> None:
    now = Loading("qwen").now
    assert (now.status, now.progress, now.detail) == ("loading", 0.0, "starting")


@pytest.mark.parametrize(
    ("reported", "shown"),
    [(0, 0.0), (0.5, 0.5), (1, 1.0), (-3, 0.0), (7, 1.0), (1 / 3, 0.3333), (math.nan, 0.0), (math.inf, 1.0)],
)
def test_progress_stays_between_0_and_1(reported: float, shown: float) -> None:
    """Whatever a loader reports."""
    loading = Loading("qwen")
    loading.report(reported, "x")
    assert loading.now.progress == shown


def test_request_while_loading_gets_progress_and_retry_after() -> None:
    loading = Loading("qwen")
    loading.report(0.425, "fetching model.safetensors.")
    refusal = heard(loading)
    assert isinstance(refusal, ModelLoading)
    assert refusal.message == "qwen is loading (42 %): fetching model.safetensors."
    assert 1 <= int(refusal.headers["Retry-After"]) <= 60


def test_retry_after_without_progress_is_a_few_seconds() -> None:
    assert heard(Loading("qwen")).headers["Retry-After"] == "5"


def test_reports_after_the_finish_are_ignored() -> None:
    loading = Loading("qwen")
    loading.finish()
    loading.report(0.3, "late")
    assert loading.refusal() is None
    assert (loading.now.status, loading.now.progress) == ("healthy", 1.0)


def test_failure_reason_is_kept() -> None:
    loading = Loading("qwen")
    loading.report(0.6, "loading")
    loading.fail("CUDA out of memory")
    loading.report(0.7, "late")
    refusal = heard(loading)
    assert (loading.now.status, loading.now.progress, loading.now.detail) == ("failed", 0.6, "CUDA out of memory")
    assert (refusal.status, refusal.code, refusal.headers["Retry-After"]) == (503, "model_failed", "30")
    assert "CUDA out of memory" in refusal.message


def test_failure_after_the_load() -> None:
    loading = Loading("qwen")
    loading.finish()
    loading.fail("the engine died")
    assert loading.now.status == "failed"


def test_finish_after_a_failure_is_ignored() -> None:
    loading = Loading("qwen")
    loading.fail("the engine died")
    loading.finish()
    assert loading.now.status == "failed"
