"""From the events that transformers' handlers write to the answers that OpenAI's clients read. Pure: dicts in and out.

The handlers always stream here, so that every answer can be cancelled; without `stream` the events are folded into one.
What the handlers leave out or do otherwise is put right: null fields that typed clients look for, usage in a chunk of
its own and only when asked for, an answer that was cut called incomplete.
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

Event = dict[str, Any]
DONE = b"data: [DONE]\n\n"


class Shape(Protocol):
    """How one route's answers look. One object per answer."""

    ends_with_done: bool

    def stream(self, event: Event, *, cut: bool) -> Iterator[Event]:
        """What goes to a streaming client for one event of the handler; `cut` when the limit ended the answer."""
        ...

    def add(self, event: Event, *, cut: bool) -> None:
        """Take one event of the handler into the folded answer."""
        ...

    def folded(self) -> Event:
        """The whole answer."""
        ...


def read_events(text: str) -> Iterator[Event]:
    """The events in what a handler wrote at once. One that is not JSON is left out: an error's text, unescaped."""
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
    """One server-sent event. Those of the Responses API carry their type as the event's name too."""
    name = event.get("type")
    head = f"event: {name}\n" if isinstance(name, str) else ""
    return f"{head}data: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class Chat:
    """Chat completions."""

    ends_with_done = True

    def __init__(self, *, include_usage: bool = False) -> None:
        self._include_usage = include_usage
        self._last: Event = {}
        self._content = ""
        self._reasoning = ""
        self._calls: list[Event] = []
        self._finish: str | None = None
        self._usage: Event | None = None

    def stream(self, event: Event, *, cut: bool) -> Iterator[Event]:
        """A chunk, and after the last one the usage when it was asked for."""
        choice = event["choices"][0]
        delta = choice["delta"]
        if delta.get("role"):
            delta.setdefault("content", "")
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": _finish(choice, cut)}
        head = {"id": event["id"], "object": event["object"], "created": event["created"], "model": event["model"]}
        nothing_yet = {"usage": None} if self._include_usage else {}
        yield {**head, "choices": [choice], **nothing_yet}
        if self._include_usage and event.get("usage"):
            yield {**head, "choices": [], "usage": event["usage"]}

    def add(self, event: Event, *, cut: bool) -> None:
        """Collect text, reasoning and tool calls."""
        self._last = event
        choice = event["choices"][0]
        delta = choice["delta"]
        self._content += delta.get("content") or ""
        self._reasoning += delta.get("reasoning_content") or ""
        self._calls += [{k: v for k, v in call.items() if k != "index"} for call in delta.get("tool_calls") or []]
        self._finish = _finish(choice, cut) or self._finish
        self._usage = event.get("usage") or self._usage

    def folded(self) -> Event:
        """A chat completion."""
        message: Event = {"role": "assistant", "content": self._content, "refusal": None}
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        if self._calls:
            message["tool_calls"] = self._calls
            message["content"] = self._content or None
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish}
        return {
            "id": self._last["id"],
            "object": "chat.completion",
            "created": self._last["created"],
            "model": self._last["model"],
            "choices": [choice],
            "usage": self._usage,
        }


class Completion:
    """Plain completions."""

    ends_with_done = True

    def __init__(self, *, include_usage: bool = False) -> None:
        self._include_usage = include_usage
        self._last: Event = {}
        self._text = ""
        self._finish: str | None = None
        self._usage: Event | None = None

    def stream(self, event: Event, *, cut: bool) -> Iterator[Event]:
        """A chunk, and after the last one the usage when it was asked for."""
        choice = event["choices"][0]
        choice = {
            "index": 0,
            "text": choice.get("text") or "",
            "logprobs": None,
            "finish_reason": _finish(choice, cut),
        }
        head = {"id": event["id"], "object": event["object"], "created": event["created"], "model": event["model"]}
        nothing_yet = {"usage": None} if self._include_usage else {}
        yield {**head, "choices": [choice], **nothing_yet}
        if self._include_usage and event.get("usage"):
            yield {**head, "choices": [], "usage": event["usage"]}

    def add(self, event: Event, *, cut: bool) -> None:
        """Collect the text."""
        self._last = event
        choice = event["choices"][0]
        self._text += choice.get("text") or ""
        self._finish = _finish(choice, cut) or self._finish
        self._usage = event.get("usage") or self._usage

    def folded(self) -> Event:
        """A text completion."""
        choice = {"index": 0, "text": self._text, "logprobs": None, "finish_reason": self._finish}
        head = {name: self._last[name] for name in ("id", "object", "created", "model")}
        return {**head, "choices": [choice], "usage": self._usage}


class Response:
    """The Responses API."""

    ends_with_done = False

    def __init__(self, request: Event) -> None:
        """`request` is the client's body, parts of which the answer repeats."""
        self._echo = {
            name: request.get(name)
            for name in ("instructions", "metadata", "temperature", "top_p", "max_output_tokens", "user")
        }
        self._answer: Event = {}

    def stream(self, event: Event, *, cut: bool) -> Iterator[Event]:
        """The handler's event, with the whole response put right where one is in it."""
        if isinstance(event.get("response"), dict):
            event["response"] = self._put_right(event["response"], cut=cut and event["type"] == "response.completed")
            if event["response"]["status"] == "incomplete":
                event["type"] = "response.incomplete"
        yield event

    def add(self, event: Event, *, cut: bool) -> None:
        """Keep the response of the last event."""
        if event["type"] == "response.completed":
            self._answer = self._put_right(event["response"], cut=cut)

    def folded(self) -> Event:
        """A response."""
        return self._answer

    def _put_right(self, response: Event, *, cut: bool) -> Event:
        # A reader cannot tell an answer that was cut from a whole one but by this.
        state: Event = {"incomplete_details": None, "error": response.get("error")}
        if cut:
            state = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "error": None}
        return {**response, **self._echo, "created_at": int(response["created_at"]), **state}


def _finish(choice: Event, cut: bool) -> str | None:
    reason = choice.get("finish_reason")
    # The handler says "stop" for whatever was no tool call and not exactly at the limit; the generation knows.
    return "length" if reason == "stop" and cut else reason
