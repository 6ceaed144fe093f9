"""Validation of request bodies. Unions are checked by hand: pydantic's errors for them do not say what to change.

Fields follow OpenAI (https://platform.openai.com/docs/api-reference/embeddings); rerank and score follow vLLM;
`truncate` and `prompt_name` follow Hugging Face's text-embeddings-inference.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, WithJsonSchema

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
    truncate: StrictBool = Field(False, description="truncate texts over the model's limit; by default they are a 400")
    truncate_prompt_tokens: StrictInt | None = Field(
        None, ge=-1, description="truncate texts to this many tokens, -1 for the model's limit"
    )
    user: str | None = None


class EmbeddingBody(_Body):
    """Body of POST /v1/embeddings."""

    input: Input = Field(
        description="a string, a list of strings, a list of token ids, or a list of lists of token ids"
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="float: numbers; base64: little-endian float32"
    )
    dimensions: StrictInt | None = Field(None, ge=1, description="keep only the first N numbers, scaled to length 1")
    prompt_name: str | None = Field(None, description="name of one of the model's prompts, such as query or document")


class RerankBody(_Body):
    """Body of POST /v1/rerank."""

    query: str
    documents: list[str | dict[str, Any]] = Field(description="strings, or objects with a `text`")
    top_n: StrictInt | None = Field(None, ge=1, description="number of best documents to return; omit for all")
    return_documents: StrictBool = True


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


def embedding_work(body: EmbeddingBody, engine: TextEngine, max_inputs: int) -> Work:
    """Validate an embeddings request and return the inputs to embed.

    Raises InvalidRequest for empty or too many inputs, token ids outside the vocabulary, or an unknown prompt.
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
    truncate_to = _truncation(body, engine.max_tokens)
    items = _input_items(body.input, max_inputs)
    if all(isinstance(item, str) for item in items):
        texts = [_text(item, f"input[{index}]", index, engine, truncate_to) for index, item in enumerate(items)]
        return Work(texts=texts, prompt=body.prompt_name, truncate_to=truncate_to)
    if all(isinstance(item, list) for item in items):
        return Work(tokens=[_token_ids(item, index, engine, truncate_to) for index, item in enumerate(items)])
    raise _invalid_input()


def rerank_work(body: RerankBody, engine: TextEngine, max_inputs: int) -> tuple[Work, list[str]]:
    """Return the pairs to score and the documents' texts. Raises InvalidRequest like `embedding_work`."""
    documents = [document if isinstance(document, str) else document.get("text") for document in body.documents]
    truncate_to = _truncation(body, engine.max_tokens)
    _check_count(len(documents), max_inputs, "documents")
    texts = [_text(text, f"documents[{index}]", index, engine, truncate_to) for index, text in enumerate(documents)]
    query = _text(body.query, "query", 0, engine, truncate_to)
    return Work(texts=[(query, text) for text in texts], truncate_to=truncate_to), texts


def score_work(body: ScoreBody, engine: TextEngine, max_inputs: int) -> Work:
    """Return the pairs to score: one text with each of a list, or two lists pairwise.

    Raises InvalidRequest like `embedding_work`.
    """
    truncate_to = _truncation(body, engine.max_tokens)
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


def _truncation(body: _Body, limit: int) -> int | None:
    tokens = body.truncate_prompt_tokens
    if tokens is None:
        return limit if body.truncate else None
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
    # Before the ids are checked one by one: millions of them would block the event loop.
    if truncate_to is not None:
        value = value[:truncate_to]
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
