"""Invalid requests get client errors from vLLM; a concurrent valid request is unaffected."""

import json
from typing import Any

import httpx2

from tests.services.llm.bad_requests import BAD_REQUESTS, HELLO, encoded, wrong_envelope

LONG: dict[str, Any] = {"messages": HELLO, "stream": True, "ignore_eos": True, "temperature": 1}


def test_invalid_requests_get_an_envelope_and_affect_no_others(raw: httpx2.Client) -> None:
    with raw.stream("POST", "/v1/chat/completions", json={**LONG, "max_tokens": 400}) as good:
        lines = good.iter_lines()
        next(lines)
        wrong = {}
        for name, path, body in BAD_REQUESTS:
            answer = raw.post(path, content=encoded(body), headers={"content-type": "application/json"})
            try:
                error = answer.json()
            except json.JSONDecodeError:
                error = answer.text
            if problem := wrong_envelope(answer.status_code, error):
                wrong[f"{path}: {name}"] = problem[:300]
        assert wrong == {}
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_unknown_routes_and_methods_get_an_envelope(raw: httpx2.Client) -> None:
    for answer, status in ((raw.post("/v1/nothing", json={}), 404), (raw.get("/v1/chat/completions"), 405)):
        assert answer.status_code == status
        assert wrong_envelope(answer.status_code, answer.json()) is None
