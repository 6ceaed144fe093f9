"""OpenAI responses from the events of transformers' handlers. No I/O.

The handlers always stream, so that every response can be cancelled; without `stream` the events are collected into one
body. Deviations of the handlers are corrected: null fields that typed clients expect, usage only on request and in its
own chunk, `length` or `incomplete` for truncated responses.
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

Event = dict[str, Any]
DONE = b"data: [DONE]\n\n"


class ResponseFormat(Protocol):
    """Format of one route's responses; one object per response. `truncated`: generation ended at the token limit."""

    ends_with_done: bool

    def stream(self, event: Event, *, truncated: bool) -> Iterator[Event]:
        """Yield the client's events for one event of the handler."""
        ...

    def add(self, event: Event, *, truncated: bool) -> None:
        """Add one event of the handler to the collected response."""
        ...

    def body(self) -> Event:
        """Return the collected response."""
        ...


def read_events(text: str) -> Iterator[Event]:
    """Parse a handler's output. Events that are not JSON are skipped: unescaped error texts."""
    for block in text.split("\n\n"):
        if not block.startswith("data: "):
            continue
        try:
            event = json.loads(block.removeprefix("data: "))
        except ValueError:
            continue
        if isinstance(event, dict) and not isinstance(event.get("error"), str):
            yield event


def encode(event: Event) -> bytes:
    """Encode a server-sent event; those of the Responses API also have an event name."""
    name = event.get("type")
    head = f"event: {name}\n" if isinstance(name, str) else ""
    return f"{head}data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class _ChoiceFormat:
    """Responses with one choice: chat and text completions."""

    ends_with_done = True
    object = ""

    def __init__(self, *, include_usage: bool = False) -> None:
        self._include_usage = include_usage
        self._last: Event = {}
        self._finish: str | None = None
        self._usage: Event | None = None

    def stream(self, event: Event, *, truncated: bool) -> Iterator[Event]:
        """Yield a chunk, and after the last one the usage if requested."""
        choice = event["choices"][0]
        head = {name: event[name] for name in ("id", "object", "created", "model")}
        choice = {"index": 0, **self._delta(choice), "logprobs": None, "finish_reason": _finish(choice, truncated)}
        yield {**head, "choices": [choice], **({"usage": None} if self._include_usage else {})}
        if self._include_usage and event.get("usage"):
            yield {**head, "choices": [], "usage": event["usage"]}

    def add(self, event: Event, *, truncated: bool) -> None:
        """Collect content, finish reason and usage."""
        self._last = event
        choice = event["choices"][0]
        self._collect(choice)
        self._finish = _finish(choice, truncated) or self._finish
        self._usage = event.get("usage") or self._usage

    def body(self) -> Event:
        """Return the completion."""
        head = {name: self._last[name] for name in ("id", "created", "model")}
        choice = {"index": 0, **self._content(), "logprobs": None, "finish_reason": self._finish}
        return {**head, "object": self.object, "choices": [choice], "usage": self._usage}

    def _delta(self, choice: Event) -> Event:
        raise NotImplementedError

    def _collect(self, choice: Event) -> None:
        raise NotImplementedError

    def _content(self) -> Event:
        raise NotImplementedError


class Chat(_ChoiceFormat):
    """Chat completions."""

    object = "chat.completion"

    def __init__(self, *, include_usage: bool = False) -> None:
        super().__init__(include_usage=include_usage)
        self._text = ""
        self._reasoning = ""
        self._calls: list[Event] = []

    def _delta(self, choice: Event) -> Event:
        delta = choice["delta"]
        if delta.get("role"):
            delta.setdefault("content", "")
        return {"delta": delta}

    def _collect(self, choice: Event) -> None:
        delta = choice["delta"]
        self._text += delta.get("content") or ""
        self._reasoning += delta.get("reasoning_content") or ""
        self._calls += [{k: v for k, v in call.items() if k != "index"} for call in delta.get("tool_calls") or []]

    def _content(self) -> Event:
        message: Event = {"role": "assistant", "content": self._text, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = self._calls
            message["content"] = self._text or None
        return {"message": message}


class Completion(_ChoiceFormat):
    """Text completions."""

    object = "text_completion"

    def __init__(self, *, include_usage: bool = False) -> None:
        super().__init__(include_usage=include_usage)
        self._text = ""

    def _delta(self, choice: Event) -> Event:
        return {"text": choice.get("text") or ""}

    def _collect(self, choice: Event) -> None:
        self._text += choice.get("text") or ""

    def _content(self) -> Event:
        return {"text": self._text}


class Response:
    """The Responses API."""

    ends_with_done = False

    def __init__(self, request: Event) -> None:
        """`request` is the client's body; the response repeats some of its fields."""
        self._echo = {
            name: request.get(name)
            for name in ("instructions", "metadata", "temperature", "top_p", "max_output_tokens", "user")
        }
        self._response: Event = {}

    def stream(self, event: Event, *, truncated: bool) -> Iterator[Event]:
        """Yield the handler's event, with a corrected response object if it has one."""
        if isinstance(event.get("response"), dict):
            event["response"] = self._corrected(
                event["response"], truncated=truncated and event["type"] == "response.completed"
            )
            if event["response"]["status"] == "incomplete":
                event["type"] = "response.incomplete"
        yield event

    def add(self, event: Event, *, truncated: bool) -> None:
        """Keep the response of the last event."""
        if event["type"] == "response.completed":
            self._response = self._corrected(event["response"], truncated=truncated)

    def body(self) -> Event:
        """Return the response."""
        return self._response

    def _corrected(self, response: Event, *, truncated: bool) -> Event:
        state: Event = {"incomplete_details": None, "error": response.get("error")}
        if truncated:
            state = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "error": None}
        return {**response, **self._echo, "created_at": int(response["created_at"]), **state}


def _finish(choice: Event, truncated: bool) -> str | None:
    reason = choice.get("finish_reason")
    # The handler reports "stop" unless the response is a tool call or ended exactly at its limit.
    return "length" if reason == "stop" and truncated else reason
