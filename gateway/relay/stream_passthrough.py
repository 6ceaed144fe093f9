"""Per-token path of a stream: forward each chunk exactly as it arrived.

A backend writes one chunk per token, so this is what a generation costs the gateway. It does what
`Forwarding.on_chunks` does for any whole chunks, reduced to the usual case: one chunk per read.
"""

from gateway.relay.attempt import Attempt
from gateway.relay.data_plane import ClientConnection
from gateway.relay.deadline import now
from gateway.streams.sse import ERROR_MARK
from gateway.streams.transcript import MAX_PENDING, Transcript

# Reads of this many bytes or more, framing included, take the general path.
MAX_READ = 4096
# The start of a chunk by the length of its read, as nearly all servers write it: lower-case hex without leading zeros.
# The filler is longer than any read, so it matches none. An event has two bytes at least.
_CHUNK_STARTS = [bytes(MAX_READ)] * MAX_READ
for _size in range(2, MAX_READ):
    _digits = b"%x\r\n" % _size
    if len(_digits) + _size + 2 < MAX_READ:
        _CHUNK_STARTS[len(_digits) + _size + 2] = _digits


class StreamPassthrough:
    """The shortcut of one attempt, once the framing of its chunks suits the client."""

    __slots__ = ("_attempt", "_deadline", "_pending", "_traffic", "_transcript", "_write")

    def __init__(self, attempt: Attempt, client: ClientConnection, transcript: Transcript | None) -> None:
        """`transcript` records what is sent, None for streams that cannot be resumed."""
        self._attempt = attempt
        self._traffic = attempt.backend.traffic
        self._deadline = client.deadline
        self._transcript = transcript
        self._pending: list[bytes] = transcript.pending if transcript is not None else []
        self._write = client.transport.write

    def try_forward(self, data: bytes) -> bool:
        """Forward `data` if it is one chunk of whole events without an error event; return whether it was.

        A slow client needs no check: the backend's connection is paused as soon as the client's buffer is full.
        """
        size = len(data)
        if size >= MAX_READ or not data.endswith(b"\n\n\r\n") or ERROR_MARK in data:
            return False
        start = _CHUNK_STARTS[size]
        if not data.startswith(start):
            return False
        self._write(data)
        # Attempt.touch, inlined.
        self._traffic.last_byte_at = at = now()
        attempt, deadline = self._attempt, self._deadline
        expires = at + attempt.idle_s
        gap = expires - deadline.at
        if gap > attempt.longest_gap_s:
            attempt.longest_gap_s = gap
        deadline.at = expires
        if self._transcript is not None:
            pending = self._pending
            pending.append(data[len(start) : -2])
            if len(pending) >= MAX_PENDING:
                self._transcript.compress()
        return True
