"""Record of the text that a chat or completion stream has sent, so that another backend can continue it.

Events are kept as they are and compressed in batches (`event_compression`). They are parsed only when another backend
has to continue the stream, when they do not compress, or when there are too many batches: parsing is the larger part of
the cost. Parsed events are reduced to a text, a number of tokens and the stream's names.

Tokens are counted by the stream's own `usage` if its events carry one (vLLM's `continuous_usage_stats`); else each
event with text counts as one token, the least that it can be.

Shapes: https://platform.openai.com/docs/api-reference/chat-streaming/streaming and .../completions/object.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gateway.streams.event_compression import CompressedEvents

# The size of a batch: after so many recorded pieces they are compressed, or parsed and dropped.
MAX_PENDING = 32
# After so many batches that did not compress, compression is no longer tried.
_MAX_FAILED_BATCHES = 3
# The longest recorded text, in characters. A model's context is shorter.
MAX_TEXT = 2_000_000

DONE = b"[DONE]"


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    """The delta of a chat chunk. A stream with any other field (content of an unknown kind) cannot be continued."""

    role: str | None = None
    content: str | None = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    reasoning: Any = None
    reasoning_content: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None
    token_ids: Any = None


class Usage(msgspec.Struct):
    """The token usage of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


# The members with one value in all events of a stream.
NAMES = ("id", "object", "created", "model")

_chunk = msgspec.json.Decoder(_Chunk)
_chunks = msgspec.json.Decoder(list[_Chunk])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Transcript:
    """One stream as its client has received it.

    Pieces go through `record`, or straight into `pending` with a `compress` at every MAX_PENDING (stream passthrough).
    """

    __slots__ = (
        "_compressed", "_length", "_texts", "_tries_left", "done", "finished", "names", "obstacle", "pending", "tokens",
        "usage",
    )  # fmt: skip

    def __init__(self) -> None:
        # Whole events that were sent and not compressed or parsed yet; always the same list.
        self.pending: list[bytes] = []
        self._compressed = CompressedEvents()
        self._tries_left = _MAX_FAILED_BATCHES
        self._texts: list[str] = []
        self._length = 0
        self.tokens = 0
        # NAMES with their values in JSON.
        self.names: dict[str, msgspec.Raw] = {}
        self.usage: Usage | None = None
        # A `finish_reason` was sent; `[DONE]` was sent.
        self.finished = False
        self.done = False
        # Why the stream cannot be continued, if it cannot; then nothing more is recorded.
        self.obstacle: str | None = None

    def record(self, events: bytes) -> None:
        """Add whole events that are being sent."""
        self.pending.append(events)
        if len(self.pending) >= MAX_PENDING:
            self.compress()

    def compress(self) -> None:
        """Reduce the memory of the pending events."""
        if self._tries_left and self.obstacle is None:
            if self._compressed.add(b"".join(self.pending)):
                self.pending.clear()
                return
            if not self._compressed:
                self._tries_left -= 1
        self.read()

    @property
    def text(self) -> str:
        """The text sent so far, as of the last `read`."""
        return "".join(self._texts)

    def read(self) -> None:
        """Parse everything recorded so far."""
        for events in self._compressed.take():
            self._parse(events)
        self._parse(b"".join(self.pending))
        self.pending.clear()

    def _parse(self, events: bytes) -> None:
        if self.obstacle is not None or not events:
            return
        try:
            if not self.names:
                members = _members.decode(next(payloads(events), b"{}"))
                self.names = {name: members[name].copy() for name in NAMES if name in members}
            for chunk in _parsed(events):
                if chunk is None:
                    self.done = True
                else:
                    self._add(chunk)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._give_up(f"it has events of an unknown form ({error})")
        if self._length > MAX_TEXT:
            self._give_up("its text is too long to be kept")

    def _add(self, chunk: _Chunk) -> None:
        if chunk.error is not None:
            self._give_up("its backend reported an error")
            return
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            self._add_choice(choice)
        if chunk.usage is not None:
            self.tokens = chunk.usage.completion_tokens

    def _add_choice(self, choice: _Choice) -> None:
        delta = choice.delta
        if choice.index:
            self._give_up("it has several choices")
        elif choice.logprobs or choice.token_ids:
            self._give_up("it carries log probabilities or token ids")
        elif delta is not None and (delta.tool_calls or delta.function_call):
            self._give_up("it calls a tool")
        elif delta is not None and (delta.reasoning or delta.reasoning_content or delta.refusal):
            self._give_up("it has reasoning or a refusal apart from its text")
        text = choice.text if delta is None else delta.content
        if text:
            self._texts.append(text)
            self._length += len(text)
            self.tokens += 1
        if choice.finish_reason is not None:
            self.finished = True

    def _give_up(self, obstacle: str) -> None:
        self.obstacle = self.obstacle or obstacle
        self._texts.clear()


def _parsed(events: bytes) -> Iterable[_Chunk | None]:
    """Return the chunks in `events`, None for `[DONE]`."""
    if events.startswith(b"data: {") and events.endswith(b"}\n\n"):
        # As vLLM and most others write: one list for the decoder, several times as fast as one by one.
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # then something else stands between them
            return _chunks.decode(b"[" + events[6:-2].replace(b"}\n\ndata: {", b"},{") + b"]")
    return [None if data == DONE else _chunk.decode(data) for data in payloads(events)]


def payloads(events: bytes) -> Iterator[bytes]:
    """Return the data of every event in `events`, without comments and fields other than data."""
    data: list[bytes] = []
    for line in events.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []
    if data:
        yield b"\n".join(data)
