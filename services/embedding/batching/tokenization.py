"""The tokens of waiting requests. Single texts of several requests share a call: one costs twice as much alone."""

from collections.abc import Iterable, Iterator, Sequence

import structlog

from kit.errors import ApiError
from services.embedding.batching.jobs import Job, text_too_long
from services.embedding.engines.interface import TextEngine, Tokens

log = structlog.get_logger(__name__)

# Enough for the tokenizer's threads; few enough to notice soon that one is too long or that nobody waits any more.
TEXTS_AT_ONCE = 32


def tokenized(engine: TextEngine, jobs: Iterable[Job]) -> Iterator[tuple[Job, Sequence[Tokens] | ApiError]]:
    """Each job with its tokens, or with what is wrong with one of its texts. Jobs that were given up are left out."""
    for some in _sharing_a_call(jobs):
        together = _together(engine, some) if len(some) > 1 else None
        if together is not None:
            yield from together
        else:
            yield from ((job, _alone(engine, job)) for job in some if not job.cancelled)


def _together(engine: TextEngine, jobs: Sequence[Job]) -> list[tuple[Job, Sequence[Tokens]]] | None:
    """The only texts of several jobs in one call. None when something is wrong with one: each is then on its own."""
    first = jobs[0].work
    try:
        tokens = engine.tokenize([job.work.texts[0] for job in jobs], prompt=first.prompt, cut=first.cut)
    except Exception as error:  # noqa: BLE001  # comes again, and is told, with the text that it is about
        log.debug("tokenizing together failed", error=str(error))
        return None
    if any(len(item) > engine.max_tokens for item in tokens):
        return None
    return [(job, [item]) for job, item in zip(jobs, tokens, strict=True)]


def _alone(engine: TextEngine, job: Job) -> Sequence[Tokens] | ApiError:
    if not job.work.texts:
        return job.work.tokens
    try:
        return _of_texts(engine, job)
    except ApiError as error:
        return error
    except Exception as error:
        log.error("tokenizing failed", exc_info=error)
        return ApiError("The texts could not be tokenized; the server's log has the cause.")


def _of_texts(engine: TextEngine, job: Job) -> list[Tokens]:
    """The tokens of a job's texts. Ends at the first that is too long, and soon after the client has left."""
    work, tokens = job.work, list[Tokens]()
    while len(tokens) < len(work.texts) and not job.cancelled:
        some = work.texts[len(tokens) : len(tokens) + TEXTS_AT_ONCE]
        for item in engine.tokenize(some, prompt=work.prompt, cut=work.cut):
            if len(item) > engine.max_tokens:
                raise text_too_long(len(tokens), f"{len(item)} tokens", engine.max_tokens)
            tokens.append(item)
    return tokens


def _sharing_a_call(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs in groups: those of one text, of one prompt and cut, up to TEXTS_AT_ONCE; every other one alone."""
    groups: list[list[Job]] = []
    filling: dict[tuple[str | None, int | None], list[Job]] = {}
    for job in jobs:
        if job.cancelled:
            continue
        if len(job.work.texts) != 1:
            groups.append([job])
            continue
        key = job.work.prompt, job.work.cut
        group = filling.get(key)
        if group is None or len(group) == TEXTS_AT_ONCE:
            group = filling[key] = []
            groups.append(group)
        group.append(job)
    return groups
