"""Tokenization of queued jobs. Single texts of several jobs share a call: a call for one text costs twice as much."""

from collections.abc import Iterable, Iterator, Sequence

import structlog

from kit.errors import ApiError
from services.embedding.batching.jobs import Job, text_too_long
from services.embedding.engines.interface import TextEngine, Tokens

log = structlog.get_logger(__name__)

# Enough for the tokenizer's threads, few enough to notice an overlong text or a cancelled job soon.
MAX_TEXTS_PER_CALL = 32


def tokenize_jobs(engine: TextEngine, jobs: Iterable[Job]) -> Iterator[tuple[Job, Sequence[Tokens] | ApiError]]:
    """Yield each job with its tokens, or with the error of its first invalid text. Cancelled jobs are skipped."""
    for group in _group_single_texts(jobs):
        tokenized = _tokenize_group(engine, group) if len(group) > 1 else None
        if tokenized is not None:
            yield from tokenized
        else:
            yield from ((job, _tokenize_job(engine, job)) for job in group if not job.cancelled)


def _tokenize_group(engine: TextEngine, jobs: Sequence[Job]) -> list[tuple[Job, Sequence[Tokens]]] | None:
    """Tokenize the single texts of several jobs in one call; None if one is invalid, so that each is tried alone."""
    first = jobs[0].work
    texts = [job.work.texts[0] for job in jobs]
    try:
        tokens = engine.tokenize(texts, prompt=first.prompt, truncate_to=first.truncate_to)
    except Exception as error:  # noqa: BLE001  # raised again, and reported, for the text that causes it
        log.debug("tokenizing several texts failed", error=str(error))
        return None
    if any(len(item) > engine.max_tokens for item in tokens):
        return None
    return [(job, [item]) for job, item in zip(jobs, tokens, strict=True)]


def _tokenize_job(engine: TextEngine, job: Job) -> Sequence[Tokens] | ApiError:
    if not job.work.texts:
        return job.work.tokens
    try:
        return _tokenize_texts(engine, job)
    except ApiError as error:
        return error
    except Exception as error:
        log.error("tokenizing failed", exc_info=error)
        return ApiError("The texts could not be tokenized. See the service's log for the cause.")


def _tokenize_texts(engine: TextEngine, job: Job) -> list[Tokens]:
    """Tokenize until the job is cancelled. Raises InvalidRequest at the first text that is too long."""
    work, tokens = job.work, list[Tokens]()
    while len(tokens) < len(work.texts) and not job.cancelled:
        texts = work.texts[len(tokens) : len(tokens) + MAX_TEXTS_PER_CALL]
        for item in engine.tokenize(
            texts, prompt=work.prompt, truncate_to=work.truncate_to, document_tokens=work.document_tokens
        ):
            if len(item) > engine.max_tokens:
                raise text_too_long(len(tokens), f"{len(item)} tokens", engine.max_tokens)
            tokens.append(item)
    return tokens


def _group_single_texts(jobs: Iterable[Job]) -> list[list[Job]]:
    """Group jobs of one text with the same prompt and limit, up to MAX_TEXTS_PER_CALL; other jobs stay alone."""
    groups: list[list[Job]] = []
    open_groups: dict[tuple[str | None, int | None], list[Job]] = {}
    for job in jobs:
        if job.cancelled:
            continue
        if len(job.work.texts) != 1 or job.work.document_tokens is not None:
            groups.append([job])
            continue
        key = job.work.prompt, job.work.truncate_to
        group = open_groups.get(key)
        if group is None or len(group) == MAX_TEXTS_PER_CALL:
            group = open_groups[key] = []
            groups.append(group)
        group.append(job)
    return groups
