"""Progress and queue length read from the /metrics of engines."""

from gateway.health.engine_metrics import read_metrics

VLLM = """\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:generation_tokens_total{engine="0",model_name="m"} 100.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e+09
http_requests_total{handler="/health"} 17.0
"""
LLAMA_CPP = "llamacpp:prompt_tokens_total 7\nllamacpp:n_decode_total 332\nllamacpp:requests_deferred 2\n"
TEI = 'te_batch_next_tokens_bucket{le="1"} 4\nte_batch_next_tokens_sum 22\nte_queue_size 5\n'


def test_vllm_metrics() -> None:
    """Only the KV cache changes while a long prompt is read; the queue is the sum over engines."""
    report = read_metrics(VLLM)
    assert report.has_steps
    assert report.waiting == 4
    for name in ("kv_cache_usage_perc", "generation_tokens_total"):
        moved = read_metrics("\n".join(line + "1" if name in line else line for line in VLLM.splitlines()))
        assert moved.progress != report.progress
    assert read_metrics(VLLM.replace("17.0", "18.0").replace('"m"} 3.0', '"m"} 30.0')).progress == report.progress


def test_other_engines() -> None:
    """llama.cpp counts steps; text-embeddings-inference and our own services only finished work."""
    assert read_metrics(LLAMA_CPP).has_steps
    assert read_metrics(LLAMA_CPP).waiting == 2
    assert not read_metrics(TEI).has_steps
    assert read_metrics(TEI).progress == ("te_batch_next_tokens_sum 22",)
    assert read_metrics(TEI).waiting == 5
    assert read_metrics("transcription_audio_seconds_total 12.5\n").progress


def test_invalid_page_reports_nothing() -> None:
    for page in ("", "<html>", "vllm:num_requests_waiting many\n", "\x00 {} {} }\n"):
        report = read_metrics(page)
        assert (report.progress, report.has_steps, report.waiting) == ((), False, None)
