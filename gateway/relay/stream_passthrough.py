"""The way of a stream's events through the gateway while nothing about them is unusual: as they came, chunk for chunk.

A backend writes one chunk per token, so this is what a generation costs here. It is kept short: what it does for each
of them is what `Forwarding.on_chunks` does for whatever has come in whole chunks, without all that may be.
"""

import time

from gateway.relay.attempt import Attempt
from gateway.relay.data_plane import ClientConnection
from gateway.streams.sse import ERROR_MARK
from gateway.streams.transcript import FOLD, Transcript

# Longer chunks go the long way, in bytes with their framing.
MOST = 4096
# How a chunk begins, by its length with its framing, as nearly all servers write it: lower case, no leading zeros. No
# read shorter than MOST begins as what stands for the lengths that no chunk has. An event takes two bytes at least.
_BEGINNINGS = [bytes(MOST)] * MOST
for _size in range(2, MOST):
    _digits = b"%x\r\n" % _size
    if len(_digits) + _size + 2 < MOST:
        _BEGINNINGS[len(_digits) + _size + 2] = _digits

now = time.perf_counter


class StreamPassthrough:
    """Of one attempt at one backend, once its events go out in the chunks that they come in."""

    __slots__ = ("_attempt", "_client", "_held", "_said", "_traffic", "_write")

    def __init__(self, attempt: Attempt, client: ClientConnection, said: Transcript | None) -> None:
        """`said` is where what goes out is kept, where it is."""
        self._attempt = attempt
        self._traffic = attempt.backend.traffic
        self._client = client
        self._said = said
        self._held: list[bytes] = said.held if said is not None else []
        self._write = client.transport.write

    def takes(self, data: bytes) -> bool:
        """Pass on what has come and return True, where it is one chunk that holds whole events, and no failure.

        A client that is full has had the backend's connection paused when it became so.
        """
        size = len(data)
        if size >= MOST or not data.endswith(b"\n\n\r\n") or ERROR_MARK in data:
            return False
        beginning = _BEGINNINGS[size]
        if not data.startswith(beginning):
            return False
        self._write(data)
        # As Attempt.moves, without the call.
        self._traffic.last_byte_at = at = now()
        attempt, client = self._attempt, self._client
        deadline = at + attempt.idle_s
        pause = deadline - client.deadline
        if pause > attempt.pause_s:
            attempt.pause_s = pause
        client.deadline = deadline
        if self._said is not None:
            held = self._held
            held.append(data[len(beginning) : -2])
            if len(held) >= FOLD:
                self._said.fold()
        return True
