"""The load: half of the requests streamed, each with its own prompt and text, and the classified results."""

import asyncio
import collections
import contextlib
import itertools
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bench.faults.wire import Connection, TransientError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 12
# A request that takes longer counts as hung, and failed. Seconds.
HUNG_S = 30.0
# Every n-th stream requests log probabilities: it cannot be resumed, and must end in an error event when cut.
TIED_EVERY = 10
# Examples to keep of each kind of failure.
EXAMPLES = 3

_TOKEN = re.compile(rb"token\d+\.[0-9a-f]{8} ")


@dataclass
class Tally:
    """Counts of results."""

    requests: int = 0
    failed: int = 0
    # Responses with a duplicated, missing or wrong token; streams that ended early, and those with an error event.
    wrong_tokens: int = 0
    silent_cuts: int = 0
    reported_cuts: int = 0
    reasons: Counter[str] = field(default_factory=collections.Counter)


class Load:
    """Workers that send one request after the other to a port."""

    def __init__(self, port: int, workers: int) -> None:
        self.tally = Tally()
        self._port = port
        self._workers = workers
        self._open = asyncio.Event()
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._sent = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        """Send requests within the block; wait for those in flight at its end."""
        self._open.set()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        try:
            yield self
        finally:
            self._open.clear()
            await asyncio.gather(*self._tasks)

    async def wait_until_sent(self, requests: int) -> None:
        """Wait until `count` requests have been sent."""
        async with self._sent:
            await self._sent.wait_for(lambda: self.tally.requests >= requests)

    async def _work(self) -> None:
        connection: Connection | None = None
        while self._open.is_set():
            if connection is None or not connection.is_open:
                connection = await Connection.open(self._port)
            await self._one(connection, next(self._numbers))
            async with self._sent:
                self._sent.notify_all()
        if connection is not None:
            connection.close()

    async def _one(self, connection: Connection, number: int) -> None:
        tally = self.tally
        stream = number % 2 == 0
        chat = number % 4 < 2
        tied = stream and number % (2 * TIED_EVERY) == 0
        messages = [{"role": "user", "content": f"question {number}"}]
        prompt = f"question {number} "
        body: dict[str, Any] = {"model": "fake", "max_tokens": TOKENS, "stream": stream}
        body |= {"messages": messages} if chat else {"prompt": prompt}
        if tied:
            body["logprobs"] = True if chat else 1
        mark = f"{zlib.crc32((json.dumps(messages) if chat else prompt).encode()):08x}"
        tally.requests += 1
        try:
            answer = await asyncio.wait_for(connection.post(CHAT if chat else COMPLETIONS, body), HUNG_S)
        except TransientError as error:
            # A stream that breaks off is a silent cut; anything else is a failure.
            tally.silent_cuts += stream
            self._fail(f"broken: {error}")
            return
        except TimeoutError:
            connection.close()
            self._fail(f"hung for {HUNG_S:g} s")
            return
        self._judge(answer.status, bytes(answer.body), stream=stream, tied=tied, mark=mark)

    def _judge(self, status: int, body: bytes, *, stream: bool, tied: bool, mark: str) -> None:
        tally = self.tally
        expected = [f"token{index}.{mark} ".encode() for index in range(TOKENS)]
        if status != 200:
            self._fail(f"{status}: {body[:300].decode(errors='replace')}")
            return
        came = _TOKEN.findall(body if stream else _text(body))
        if stream and not body.endswith(b"data: [DONE]\n\n"):
            reported = b'data: {"error"' in body[-4000:] and body.endswith(b"\n\n")
            tally.reported_cuts += reported
            tally.silent_cuts += not reported
            # The part before the cut must be correct all the same.
            tally.wrong_tokens += came != expected[: len(came)]
            if not (reported and tied):
                self._fail("cut: " + body[-300:].decode(errors="replace"))
            return
        if came != expected:
            tally.wrong_tokens += 1
            tally.reasons[f"wrong tokens: {len(came)} came"] += 1

    def _fail(self, reason: str) -> None:
        self.tally.failed += 1
        self.tally.reasons[reason if len(self.tally.reasons) < 50 else "more"] += 1


def _text(body: bytes) -> bytes:
    choice = json.loads(body)["choices"][0]
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text.encode()
