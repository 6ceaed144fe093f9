"""Validation of request bodies. Unions are checked by hand: pydantic's errors for them do not say what to change.

Fields follow OpenAI (https://platform.openai.com/docs/api-reference/embeddings); rerank follows Cohere's v1 and v2
(https://docs.cohere.com/reference/rerank) and vLLM, score vLLM; `truncate` and `prompt_name` follow Hugging Face's
text-embeddings-inference.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from kit.errors import InvalidRequest
from services.embedding.batching.jobs import Work, text_too_long
from services.embedding.engines.interface import TextEngine, Tokens

# Except for blanks and unknown words, no tokenizer packs more characters into a token. Longer texts are rejected or
# truncated by this limit before the tokenizer spends seconds on them.
MAX_CHARACTERS_PER_TOKEN = 128

_STRINGS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
Input = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, _STRINGS, _IDS, {"type": "array", "items": _IDS}]})
]
OneOrMore = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, _STRINGS]})]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="a name of this service's model; omit for the only one")
    truncate: StrictBool | None = Field(
        None, description="truncate texts over the model's limit, or reject them; AUTO_TRUNCATE is the default"
    )
    truncate_prompt_tokens: StrictInt | None = Field(
        None, ge=-1, description="truncate texts to this many tokens, -1 for the model's limit"
    )
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, body: Any) -> Any:
        """Treat null as absent: LiteLLM, Dify and others send null in every field that is not set."""
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


class EmbeddingBody(_Body):
    """Body of POST /v1/embeddings."""

    input: Input = Field(
        description="a string, a list of strings, or one or several lists of token ids of this model's own tokenizer, "
        "including its special tokens"
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="float: numbers; base64: little-endian float32"
    )
    dimensions: StrictInt | None = Field(None, ge=1, description="keep only the first N numbers, scaled to length 1")
    prompt_name: str | None = Field(None, description="name of one of the model's prompts, such as query or document")


class RerankBody(_Body):
    """Body of POST /rerank, /v1/rerank and /v2/rerank."""

    query: str
    documents: list[str | dict[str, Any]] = Field(description="strings, or objects with a `text` or with `rank_fields`")
    rank_fields: list[str] = Field(
        ["text"], min_length=1, description="fields of each object in `documents` that are ranked, in this order"
    )
    top_n: StrictInt | None = Field(None, ge=1, description="number of best documents to return; omit for all")
    top_k: StrictInt | None = Field(None, ge=1, description="another name of `top_n`")
    return_documents: StrictBool = True
    max_tokens_per_doc: StrictInt | None = Field(
        None, ge=1, description="truncate each document to this many tokens; 4096 is the default of /v2/rerank"
    )
    max_chunks_per_doc: StrictInt | None = Field(
        None, ge=1, description="truncate documents over the model's limit: each is ranked by its first chunk"
    )

    @property
    def count(self) -> int | None:
        """Number of documents to return, or None for all. Raises InvalidRequest if `top_n` and `top_k` differ."""
        if self.top_n is not None and self.top_k is not None and self.top_n != self.top_k:
            raise InvalidRequest(
                f"top_n is {self.top_n} and top_k is {self.top_k}: they mean the same, so send one of them.",
                param="top_k",
            )
        return self.top_n if self.top_n is not None else self.top_k


class ScoreBody(_Body):
    """Body of POST /v1/score."""

    text_1: OneOrMore = Field(description="a string, or as many strings as text_2")
    text_2: OneOrMore = Field(description="a string or a list of strings")


B = TypeVar("B", bound=_Body)


def parse(body: type[B], data: bytes) -> B:
    """Parse a JSON body. Raises InvalidRequest that names the first invalid field."""
    try:
        return body.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise InvalidRequest(f"The body is not JSON: {first['ctx']['error']}.") from error
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequest(f"{where}: {first['msg']}.", param=where) from error


def embedding_work(body: EmbeddingBody, engine: TextEngine, max_inputs: int, *, auto_truncate: bool = False) -> Work:
    """Validate an embeddings request and return the inputs to embed. `auto_truncate` is the default of `truncate`.

    Raises InvalidRequest for empty or too many inputs, token ids of another tokenizer, or an unknown prompt.
    """
    if body.dimensions is not None and body.dimensions > engine.dimensions:
        raise InvalidRequest(
            f"dimensions is {body.dimensions}; this model has {engine.dimensions}.",
            param="dimensions",
        )
    if body.prompt_name is not None and body.prompt_name not in engine.prompts:
        known = ", ".join(engine.prompts) or "none"
        raise InvalidRequest(
            f"Unknown prompt_name {body.prompt_name!r}. Prompts of this model: {known}.", param="prompt_name"
        )
    truncate_to = _truncation(body, engine.max_tokens, auto_truncate)
    items = _input_items(body.input, max_inputs)
    if all(isinstance(item, str) for item in items):
        texts = [_text(item, f"input[{index}]", index, engine, truncate_to) for index, item in enumerate(items)]
        return Work(texts=texts, prompt=body.prompt_name, truncate_to=truncate_to)
    if all(isinstance(item, list) for item in items):
        return Work(tokens=[_token_ids(item, index, engine, truncate_to) for index, item in enumerate(items)])
    raise _invalid_input()


def rerank_work(body: RerankBody, engine: TextEngine, max_inputs: int, *, auto_truncate: bool = False) -> Work:
    """Return the pairs to score. Raises InvalidRequest like `embedding_work`.

    Both of Cohere's limits truncate: its API rejects no document for its length.
    """
    auto_truncate = auto_truncate or body.max_tokens_per_doc is not None or body.max_chunks_per_doc is not None
    truncate_to = _truncation(body, engine.max_tokens, auto_truncate)
    _check_count(len(body.documents), max_inputs, "documents")
    texts = [
        _text(_ranked_text(document, body.rank_fields), f"documents[{index}]", index, engine, truncate_to)
        for index, document in enumerate(body.documents)
    ]
    query = _text(body.query, "query", 0, engine, truncate_to)
    document_tokens = body.max_tokens_per_doc
    if document_tokens is not None and document_tokens >= engine.max_tokens:
        document_tokens = None  # the model's limit is stricter
    return Work(texts=[(query, text) for text in texts], truncate_to=truncate_to, document_tokens=document_tokens)


def score_work(body: ScoreBody, engine: TextEngine, max_inputs: int, *, auto_truncate: bool = False) -> Work:
    """Return the pairs to score: one text with each of a list, or two lists pairwise.

    Raises InvalidRequest like `embedding_work`.
    """
    truncate_to = _truncation(body, engine.max_tokens, auto_truncate)
    sides = []
    for name, value in (("text_1", body.text_1), ("text_2", body.text_2)):
        values = value if isinstance(value, list) else [value]
        _check_count(len(values), max_inputs, name)
        sides.append([_text(text, f"{name}[{index}]", index, engine, truncate_to) for index, text in enumerate(values)])
    first, second = sides
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InvalidRequest(
            f"text_1 has {len(first)} texts and text_2 {len(second)}: send one text_1, or as many as text_2.",
            param="text_1",
        )
    return Work(texts=list(zip(first, second, strict=True)), truncate_to=truncate_to)


def _truncation(body: _Body, limit: int, auto_truncate: bool) -> int | None:
    tokens = body.truncate_prompt_tokens
    if tokens is None:
        return limit if (auto_truncate if body.truncate is None else body.truncate) else None
    if tokens == 0 or tokens > limit:
        raise InvalidRequest(
            f"truncate_prompt_tokens is {tokens}; it must be 1 to {limit}, or -1 for {limit}.",
            param="truncate_prompt_tokens",
        )
    return limit if tokens == -1 else tokens


def _input_items(value: Any, max_inputs: int) -> list[Any]:
    """Return `input` as a list of texts or of token id lists."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _invalid_input()
    if value and all(type(item) is int for item in value):
        return [value]
    _check_count(len(value), max_inputs, "input")
    return value


def _check_count(count: int, limit: int, name: str) -> None:
    if count == 0:
        raise InvalidRequest(f"{name} is empty. Send at least one text.", param=name)
    if count > limit:
        raise InvalidRequest(
            f"{name} has {count} items; the limit is {limit} per request (MAX_INPUTS). Split it.", param=name
        )


def _ranked_text(document: str | dict[str, Any], fields: Sequence[str]) -> Any:
    """Return what is ranked of a document: the values of `fields`, one per line; a wrong value, or None, if invalid."""
    if isinstance(document, str):
        return document
    values = [document[field] for field in fields if document.get(field) is not None]
    if not all(isinstance(value, str) for value in values):
        return next(value for value in values if not isinstance(value, str))
    return "\n".join(value for value in values if value) if values else None


def _text(value: Any, name: str, index: int, engine: TextEngine, truncate_to: int | None) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string, got {type(value).__name__}.", param=name.partition("[")[0])
    if not value:
        raise InvalidRequest(f"{name} is an empty string. Remove it.", param=name.partition("[")[0])
    max_characters = engine.max_tokens * MAX_CHARACTERS_PER_TOKEN
    if len(value) <= max_characters:
        return value
    if truncate_to is None:
        raise text_too_long(index, f"{len(value)} characters", engine.max_tokens)
    return value[:max_characters]


def _token_ids(value: list[Any], index: int, engine: TextEngine, truncate_to: int | None) -> Tokens:
    if not value:
        raise InvalidRequest(f"input[{index}] is an empty list of tokens. Remove it.", param="input")
    first, last = engine.special_tokens
    if not (first or last) or value[: len(first)] != first or value[len(value) - len(last) :] != last:
        # LangChain's default are ids of an OpenAI tokenizer, which as ids of this model would be another text.
        reason = f"they begin with {first} and end with {last}" if first or last else "it accepts none"
        raise InvalidRequest(
            f"input[{index}] does not have token ids of this model: {reason}. Send text; LangChain's OpenAIEmbeddings "
            "does so with check_embedding_ctx_length=False.",
            param="input",
        )
    # Before the ids are checked one by one: millions of them would block the event loop.
    if truncate_to is not None and len(value) > truncate_to:
        value = value[: max(truncate_to - len(last), 0)] + last
    elif len(value) > engine.max_tokens:
        raise text_too_long(index, f"{len(value)} tokens", engine.max_tokens)
    for token in value:
        if type(token) is not int or not 0 <= token < engine.vocabulary:
            raise InvalidRequest(
                f"input[{index}] contains {token!r:.40}; token ids of this model are 0 to {engine.vocabulary - 1}.",
                param="input",
            )
    return Tokens(value)


def _invalid_input() -> InvalidRequest:
    return InvalidRequest(
        "input must be a string, a list of strings, a list of token ids, or a list of lists of token ids.",
        param="input",
    )
