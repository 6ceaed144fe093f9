"""The second half of a stream, written so that its client sees one stream: the same id, one role, one sum of tokens."""

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.streams.sse import EventHolder
from gateway.streams.transcript import DONE, Transcript, payloads

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Seam(EventHolder):
    """Holds events back until they are whole, like its base, and rewrites them."""

    __slots__ = ("_carried", "_names", "_prompt_tokens", "_said")

    def __init__(self, said: Transcript, *, carried: bool) -> None:
        """`said` is what went out before. `carried` says that it was part of the prompt of what comes now."""
        super().__init__()
        self._names = dict(said.names)
        self._said = said.tokens
        self._carried = carried
        self._prompt_tokens = said.usage.prompt_tokens if said.usage is not None else None

    def pass_on(self, data: bytes) -> bytes:
        """Take what has come; return what may go to the client."""
        return self._rewritten(super().pass_on(data))

    def rest(self) -> bytes:
        """What is still held, when the answer ended as it should."""
        return self._rewritten(super().rest())

    def _rewritten(self, events: bytes) -> bytes:
        return b"".join(self._events(events)) if events else b""

    def _events(self, events: bytes) -> Iterator[bytes]:
        for data in payloads(events):
            if data == DONE:
                yield b"data: [DONE]\n\n"
                continue
            try:
                chunk = _decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield b"data: %b\n\n" % data
                continue
            if "error" in chunk or self._rewrite(chunk):
                yield b"data: %b\n\n" % msgspec.json.encode(chunk)

    def _rewrite(self, chunk: dict[str, Any]) -> bool:
        """Make an event one of the first stream; False when it says nothing that was not said."""
        for name, value in self._names.items():
            if name in chunk:
                chunk[name] = value
        choices = chunk.get("choices")
        says = not choices
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta")
            if isinstance(delta, dict):
                delta.pop("role", None)
                says = says or any(value not in (None, "", []) for value in delta.values())
            says = says or bool(choice.get("text")) or choice.get("finish_reason") is not None
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._add(usage)
        return says

    def _add(self, usage: dict[str, Any]) -> None:
        """Sum up: all that was said was completion, and what the first request was is the prompt.

        Where the first stream told no usage, its prompt is what this one counts, less what was said: as near as can be
        known, since a text cut elsewhere may make other tokens.
        """
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int):
            return
        if self._prompt_tokens is not None:
            prompt = self._prompt_tokens
        elif self._carried:
            prompt = max(prompt - self._said, 0)
        completion = (completion if isinstance(completion, int) else 0) + self._said
        usage.update(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
