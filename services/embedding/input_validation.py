"""What a request may send: JSON bodies checked by hand where a union's error would tell nobody what to change.

The routes and fields are OpenAI's (https://platform.openai.com/docs/api-reference/embeddings), vLLM's for rerank and
score, and for `truncate` and `prompt_name` those of Hugging Face's text-embeddings-inference.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, WithJsonSchema

from kit.errors import InvalidRequest
from services.embedding.batching.jobs import Work, text_too_long
from services.embedding.engines.interface import TextEngine, Tokens

# No tokenizer makes less than one token of this many characters, except of blanks and of words it does not know at all.
# Longer texts are refused (or cut) by this before the tokenizer spends seconds on them.
CHARACTERS_PER_TOKEN = 128

_STRINGS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
Input = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, _STRINGS, _IDS, {"type": "array", "items": _IDS}]})
]
OneOrMore = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, _STRINGS]})]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(None, description="a name that this service answers to; none means the one it serves")
    truncate: StrictBool = Field(False, description="cut texts that are longer than the model takes, instead of a 400")
    truncate_prompt_tokens: StrictInt | None = Field(
        None, ge=-1, description="cut texts to this many tokens, -1 for as many as the model takes"
    )
    user: str | None = None


class EmbeddingBody(_Body):
    """The body of POST /v1/embeddings."""

    input: Input = Field(description="a string, a list of strings, a list of token ids, or a list of such lists")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="float: numbers; base64: little-endian float32"
    )
    dimensions: StrictInt | None = Field(
        None, ge=1, description="keep only the first so many numbers, scaled to length 1 again"
    )
    prompt_name: str | None = Field(None, description="one of the model's own prompts, such as query or document")


class RerankBody(_Body):
    """The body of POST /v1/rerank."""

    query: str
    documents: list[str | dict[str, Any]] = Field(description="strings, or objects with a text")
    top_n: StrictInt | None = Field(None, ge=1, description="how many of the best to return, all without it")
    return_documents: StrictBool = True


class ScoreBody(_Body):
    """The body of POST /v1/score."""

    text_1: OneOrMore = Field(description="a string, or as many strings as text_2")
    text_2: OneOrMore = Field(description="a string or a list of strings")


B = TypeVar("B", bound=_Body)


def parse(body: type[B], data: bytes) -> B:
    """Read a JSON body.

    Raises InvalidRequest that names the first field that is wrong.
    """
    try:
        return body.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise InvalidRequest(f"The body is not JSON: {first['ctx']['error']}.") from error
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequest(f"{where}: {first['msg']}.", param=where) from error


def embedding_work(body: EmbeddingBody, engine: TextEngine, max_inputs: int) -> Work:
    """Turn a checked body into work.

    Raises InvalidRequest for what the engine cannot take: empty, too many, foreign token ids, unknown prompt.
    """
    if body.dimensions is not None and body.dimensions > engine.dimensions:
        raise InvalidRequest(
            f"dimensions is {body.dimensions}, but this model has {engine.dimensions}.",
            param="dimensions",
        )
    if body.prompt_name is not None and body.prompt_name not in engine.prompts:
        known = ", ".join(engine.prompts) or "none"
        raise InvalidRequest(
            f"prompt_name is {body.prompt_name!r}; prompts of this model: {known}.", param="prompt_name"
        )
    cut = _cut(body, engine.max_tokens)
    items = _listed(body.input, max_inputs)
    if all(isinstance(item, str) for item in items):
        texts = [_text(item, f"input[{index}]", index, engine, cut) for index, item in enumerate(items)]
        return Work(texts=texts, prompt=body.prompt_name, cut=cut)
    if all(isinstance(item, list) for item in items):
        return Work(tokens=[_ids(item, index, engine, cut) for index, item in enumerate(items)])
    raise _wrong_input()


def rerank_work(body: RerankBody, engine: TextEngine, max_inputs: int) -> tuple[Work, list[str]]:
    """Turn a checked body into pairs to score, and the documents' texts.

    Raises InvalidRequest as `embedding_work` does.
    """
    documents = [document if isinstance(document, str) else document.get("text") for document in body.documents]
    cut = _cut(body, engine.max_tokens)
    _count(len(documents), max_inputs, "documents")
    texts = [_text(text, f"documents[{index}]", index, engine, cut) for index, text in enumerate(documents)]
    query = _text(body.query, "query", 0, engine, cut)
    return Work(texts=[(query, text) for text in texts], cut=cut), texts


def score_work(body: ScoreBody, engine: TextEngine, max_inputs: int) -> Work:
    """Turn a checked body into pairs to score: one text against each, or two lists of one length pairwise.

    Raises InvalidRequest as `embedding_work` does.
    """
    cut = _cut(body, engine.max_tokens)
    sides = []
    for name, value in (("text_1", body.text_1), ("text_2", body.text_2)):
        values = value if isinstance(value, list) else [value]
        _count(len(values), max_inputs, name)
        sides.append([_text(text, f"{name}[{index}]", index, engine, cut) for index, text in enumerate(values)])
    first, second = sides
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise InvalidRequest(
            f"text_1 has {len(first)} texts and text_2 {len(second)}: send one text_1, or as many as text_2.",
            param="text_1",
        )
    return Work(texts=list(zip(first, second, strict=True)), cut=cut)


def _cut(body: _Body, limit: int) -> int | None:
    tokens = body.truncate_prompt_tokens
    if tokens is None:
        return limit if body.truncate else None
    if tokens == 0 or tokens > limit:
        raise InvalidRequest(
            f"truncate_prompt_tokens is {tokens}; it takes 1 to {limit}, or -1 for {limit}.",
            param="truncate_prompt_tokens",
        )
    return limit if tokens == -1 else tokens


def _listed(value: Any, max_inputs: int) -> list[Any]:
    """`input` as a list of texts or of token-id lists."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise _wrong_input()
    if value and all(type(item) is int for item in value):
        return [value]
    _count(len(value), max_inputs, "input")
    return value


def _count(count: int, most: int, name: str) -> None:
    if count == 0:
        raise InvalidRequest(f"{name} is empty. Send at least one text.", param=name)
    if count > most:
        raise InvalidRequest(f"{name} has {count} items; at most {most} fit in one request. Split it.", param=name)


def _text(value: Any, name: str, index: int, engine: TextEngine, cut: int | None) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a string, got {type(value).__name__}.", param=name.partition("[")[0])
    if not value:
        raise InvalidRequest(f"{name} is an empty string. Leave it out.", param=name.partition("[")[0])
    most = engine.max_tokens * CHARACTERS_PER_TOKEN
    if len(value) <= most:
        return value
    if cut is None:
        raise text_too_long(index, f"{len(value)} characters", engine.max_tokens)
    return value[:most]


def _ids(value: list[Any], index: int, engine: TextEngine, cut: int | None) -> Tokens:
    if not value:
        raise InvalidRequest(f"input[{index}] has no tokens. Leave it out.", param="input")
    # First of all: millions of them would hold up the event loop while each is looked at.
    if cut is not None:
        value = value[:cut]
    elif len(value) > engine.max_tokens:
        raise text_too_long(index, f"{len(value)} tokens", engine.max_tokens)
    for token in value:
        if type(token) is not int or not 0 <= token < engine.vocabulary:
            raise InvalidRequest(
                f"input[{index}] holds {token!r:.40}; this model's token ids run from 0 to {engine.vocabulary - 1}.",
                param="input",
            )
    return Tokens(value)


def _wrong_input() -> InvalidRequest:
    return InvalidRequest(
        "input must be a string, a list of strings, a list of token ids, or a list of such lists, not a mixture.",
        param="input",
    )
