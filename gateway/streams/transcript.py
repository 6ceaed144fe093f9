"""What a stream of a chat or a completion has told its client so far, kept so that another backend can go on from it.

The events that went out are kept as they are and packed when a handful has come together (gateway.packing). They are
read where another backend is to go on, where they do not become smaller, and where too many have come together: reading
them is most of what keeping them costs.
What is read is reduced to a text, a number of tokens and the names that the stream goes by.

A token is counted by the stream's own `usage` where its events carry one (vLLM's `continuous_usage_stats`); else every
event with some text is taken for one token, which is the least that it can be.

Shapes: https://platform.openai.com/docs/api-reference/chat-streaming/streaming and .../completions/object.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gateway.streams.event_compression import Pack

# After how many pieces they are packed, or read and let go.
FOLD = 32
# How many handfuls of a stream may fail to become smaller before it is no longer tried.
_TRIES = 3
# The longest text that is kept, in characters. A model's context is shorter.
MAX_TEXT = 2_000_000

DONE = b"[DONE]"


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    """What a chat's event adds. Whatever is not here (a kind of content unknown today) cannot be gone on from."""

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
    """How many tokens a request has cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


# The members that are the same in every event of a stream.
NAMES = ("id", "object", "created", "model")

_chunk = msgspec.json.Decoder(_Chunk)
_chunks = msgspec.json.Decoder(list[_Chunk])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Transcript:
    """One stream as its client sees it.

    Every piece goes through `keep`, or straight into `held`, with a `fold` whenever FOLD are there (gateway.passage).
    """

    __slots__ = (
        "_length", "_pack", "_texts", "_tries", "done", "finished", "held", "names", "reason", "tokens", "usage",
    )  # fmt: skip

    def __init__(self) -> None:
        # Whole events that have gone out and are not read yet; always the same list.
        self.held: list[bytes] = []
        self._pack = Pack()
        self._tries = _TRIES
        self._texts: list[str] = []
        self._length = 0
        self.tokens = 0
        # NAMES with their values in JSON.
        self.names: dict[str, msgspec.Raw] = {}
        self.usage: Usage | None = None
        # Whether the choice has ended, and whether the stream has said so.
        self.finished = False
        self.done = False
        # Why it cannot be gone on from, where it cannot; then nothing more is kept.
        self.reason: str | None = None

    def keep(self, events: bytes) -> None:
        """Take whole events that are going out."""
        self.held.append(events)
        if len(self.held) >= FOLD:
            self.fold()

    def fold(self) -> None:
        """Keep what is held in less memory."""
        if self._tries and self.reason is None:
            if self._pack.add(b"".join(self.held)):
                self.held.clear()
                return
            if not self._pack:
                self._tries -= 1
        self.read()

    @property
    def text(self) -> str:
        """The text of the answer so far, as of the last `read`."""
        return "".join(self._texts)

    def read(self) -> None:
        """Read what is kept."""
        for events in self._pack.take():
            self._read(events)
        self._read(b"".join(self.held))
        self.held.clear()

    def _read(self, events: bytes) -> None:
        if self.reason is not None or not events:
            return
        try:
            if not self.names:
                members = _members.decode(next(payloads(events), b"{}"))
                self.names = {name: members[name].copy() for name in NAMES if name in members}
            for chunk in _read(events):
                if chunk is None:
                    self.done = True
                else:
                    self._take(chunk)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._give_up(f"it holds what is not understood here ({error})")
        if self._length > MAX_TEXT:
            self._give_up("its text is too long to be kept")

    def _take(self, chunk: _Chunk) -> None:
        if chunk.error is not None:
            self._give_up("its backend has told of an error")
            return
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices:
            self._take_choice(choice)
        if chunk.usage is not None:
            self.tokens = chunk.usage.completion_tokens

    def _take_choice(self, choice: _Choice) -> None:
        delta = choice.delta
        if choice.index:
            self._give_up("it has several answers side by side")
        elif choice.logprobs or choice.token_ids:
            self._give_up("it carries log probabilities or token ids")
        elif delta is not None and (delta.tool_calls or delta.function_call):
            self._give_up("it calls a tool")
        elif delta is not None and (delta.reasoning or delta.reasoning_content or delta.refusal):
            self._give_up("it has reasoned apart from its text")
        text = choice.text if delta is None else delta.content
        if text:
            self._texts.append(text)
            self._length += len(text)
            self.tokens += 1
        if choice.finish_reason is not None:
            self.finished = True

    def _give_up(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._texts.clear()


def _read(held: bytes) -> Iterable[_Chunk | None]:
    """The events in `held`; None is the one that ends the stream."""
    if held.startswith(b"data: {") and held.endswith(b"}\n\n"):
        # As vLLM and most others write: one list for the decoder, several times as fast as one by one.
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # then something else stands between them
            return _chunks.decode(b"[" + held[6:-2].replace(b"}\n\ndata: {", b"},{") + b"]")
    return [None if data == DONE else _chunk.decode(data) for data in payloads(held)]


def payloads(events: bytes) -> Iterator[bytes]:
    """The data of every event in `events`. Comments and fields without data are left out."""
    data: list[bytes] = []
    for line in events.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []
    if data:
        yield b"\n".join(data)
