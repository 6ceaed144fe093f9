"""The second half of a continued stream, rewritten so that its client sees one stream: one id, one role, one usage."""

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.streams.sse import EventBuffer
from gateway.streams.transcript import DONE, Transcript, payloads

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class StreamSplicer(EventBuffer):
    """An event buffer that rewrites the events."""

    __slots__ = ("_includes_transcript", "_names", "_prompt_tokens", "_sent_tokens")

    def __init__(self, transcript: Transcript, *, includes_transcript: bool) -> None:
        """`transcript` is of the first half; the flag says that it was part of the prompt of the second."""
        super().__init__()
        self._names = dict(transcript.names)
        self._sent_tokens = transcript.tokens
        self._includes_transcript = includes_transcript
        self._prompt_tokens = transcript.usage.prompt_tokens if transcript.usage is not None else None

    def feed(self, data: bytes) -> bytes:
        """Add received bytes; return the rewritten events that are complete."""
        return self._rewritten(super().feed(data))

    def flush(self) -> bytes:
        """Return the unfinished rest of a stream that has ended properly, rewritten."""
        return self._rewritten(super().flush())

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
        """Rewrite a chunk so that it continues the first stream; return False if it adds nothing."""
        for name, value in self._names.items():
            if name in chunk:
                chunk[name] = value
        choices = chunk.get("choices")
        has_content = not choices
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta")
            if isinstance(delta, dict):
                delta.pop("role", None)
                has_content = has_content or any(value not in (None, "", []) for value in delta.values())
            has_content = has_content or bool(choice.get("text")) or choice.get("finish_reason") is not None
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self._add_first_half(usage)
        return has_content

    def _add_first_half(self, usage: dict[str, Any]) -> None:
        """Make the usage that of both halves: the first request's prompt, and the completion tokens of both.

        If the first half had no usage, its prompt is estimated as this one's without the tokens sent before: the same
        text may be tokenized differently when cut elsewhere.
        """
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(prompt, int):
            return
        if self._prompt_tokens is not None:
            prompt = self._prompt_tokens
        elif self._includes_transcript:
            prompt = max(prompt - self._sent_tokens, 0)
        completion = (completion if isinstance(completion, int) else 0) + self._sent_tokens
        usage.update(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
