"""Arriving requests: bursts, different lengths, shared prefixes. Seeded, so repeatable."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
# Half a KB of text that differs from block to block, as the router hashes bytes.
_FILL = "0123456789abcdefghijklmnopqrstuvwxyz" * 15


@dataclass(frozen=True, slots=True)
class Request:
    """One streamed request. `blocks` name its prompt's parts of BLOCK bytes: equal names, equal text."""

    at: float
    blocks: tuple[tuple[int, ...], ...]
    tokens: int
    # Factor around 1 for this prompt's processing time, the same on every server.
    noise: float

    @property
    def kb(self) -> float:
        """Prompt length in KB."""
        return len(self.blocks) * BLOCK / 1024

    @property
    def prompt(self) -> bytes:
        """The prompt as the router gets it."""
        return b"".join(f"{block}{_FILL}"[:BLOCK].encode() for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Shape:
    """Arrival pattern. Rates per second; lengths are means of log-normal distributions."""

    requests: int
    rate: float
    prompt_blocks: float = 8.0
    tokens: float = 150.0
    # Rate in bursts relative to the rate between them, and the share of time in bursts.
    burst: float = 4.0
    burst_share: float = 0.2
    burst_s: float = 5.0
    # Shared prefixes: number, length, and the exponent of Zipf's law for their popularity.
    groups: int = 0
    group_blocks: int = 0
    zipf: float = 0.8
    # Turns of a conversation; each prompt holds all earlier turns.
    turns: int = 1
    turn_pause_s: float = 10.0


def arrivals(shape: Shape, seed: int) -> list[Request]:
    """Return the requests of one run, in the order of arrival."""
    random_ = random.Random(seed)
    weights = [1 / (rank + 1) ** shape.zipf for rank in range(shape.groups)]
    requests: list[Request] = []
    conversation = 0
    times = _times(shape, random_)
    while len(requests) < shape.requests:
        at = next(times)
        conversation += 1
        blocks: list[tuple[int, ...]] = []
        if shape.groups:
            group = random_.choices(range(shape.groups), weights)[0]
            blocks += [(0, group, number) for number in range(shape.group_blocks)]
        for turn in range(shape.turns):
            count = max(round(_around(random_, shape.prompt_blocks)), 1)
            blocks += [(1, conversation, turn, number) for number in range(count)]
            tokens = max(round(_around(random_, shape.tokens)), 1)
            requests.append(Request(at, tuple(blocks), tokens, random_.lognormvariate(0, 0.1)))
            at += random_.expovariate(1 / shape.turn_pause_s) if shape.turns > 1 else 0.0
    requests.sort(key=lambda request: request.at)
    return requests[: shape.requests]


def _around(random_: random.Random, mean: float, sigma: float = 0.6) -> float:
    return mean * random_.lognormvariate(-sigma * sigma / 2, sigma)


def _times(shape: Shape, random_: random.Random) -> Iterator[float]:
    """Poisson arrivals with two alternating rates, `rate` conversations per second on average."""
    calm = shape.rate / shape.turns / (1 - shape.burst_share + shape.burst_share * shape.burst)
    now, bursting, until = 0.0, False, 0.0
    while True:
        while True:
            step = random_.expovariate(calm * (shape.burst if bursting else 1.0))
            if now + step <= until:
                break
            now = until
            bursting = not bursting
            share = shape.burst_share if bursting else 1 - shape.burst_share
            until = now + random_.expovariate(1 / (shape.burst_s * share / shape.burst_share))
        now += step
        yield now
