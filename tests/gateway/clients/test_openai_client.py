"""The official OpenAI client against the gateway: every call and every class of error."""

import base64
import io
from contextlib import AsyncExitStack
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import HANG_S, RunningGateway
from tests.support.backends.openai_backend import FakeBackend

ROOT = Path(__file__).resolve().parents[3]
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def connect(stack: AsyncExitStack) -> object:
    """Make a client for a gateway."""

    async def make(gateway: RunningGateway, key: str = "none") -> AsyncOpenAI:
        # verify: building a TLS context takes longer than the test, and nothing here is TLS.
        http = DefaultAsyncHttpxClient(trust_env=False, verify=False)
        client = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=HANG_S, http_client=http)
        return await stack.enter_async_context(client)

    return make


@pytest.fixture
async def cluster(start_backend: StartBackend, start_gateway: StartGateway) -> RunningGateway:
    """An LLM, an embedding and a transcription service."""
    backends: list[FakeBackend] = [
        await start_backend(aliases="fast|Qwen/Qwen"),
        await start_backend("embedding", model="minilm", kind="embedding", aliases="embedding"),
        await start_backend("transcription", model="whisper", kind="transcription"),
    ]
    return await start_gateway(*backends)


async def test_chat(cluster: RunningGateway, connect: object) -> None:
    """A chat completion, by name, by alias and by `cluster`, and the headers around it."""
    client = await connect(cluster)  # type: ignore[operator]
    for model in ("qwen", "fast", "Qwen/Qwen", "cluster"):
        raw = await client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
        assert raw.headers["x-served-model"] == "qwen"
        assert raw.parse().choices[0].message.content.startswith("token0")


async def test_stream(cluster: RunningGateway, connect: object) -> None:
    """A streamed chat, to its end."""
    client = await connect(cluster)  # type: ignore[operator]
    stream = await client.chat.completions.create(model="qwen", messages=MESSAGES, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "token0 token1 token2 token3 "


async def test_cancelled_stream(start_backend: StartBackend, start_gateway: StartGateway, connect: object) -> None:
    """Closing a stream in the middle ends the request at the backend."""
    backend = await start_backend(gated=True)
    gateway = await start_gateway(backend)
    client = await connect(gateway)  # type: ignore[operator]
    backend.gate.release()
    stream = await client.chat.completions.create(model="qwen", messages=MESSAGES, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await backend.requests[0].gone.wait()
    await gateway.until(lambda: gateway.backend("llm-primary").traffic.in_flight == 0)


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings(cluster: RunningGateway, connect: object, encoding: str) -> None:
    """Embeddings as numbers and as base64."""
    client = await connect(cluster)  # type: ignore[operator]
    answer = await client.embeddings.create(model="embedding", input=["a", "b"], encoding_format=encoding)
    vector = answer.data[1].embedding
    assert len(base64.b64decode(vector)) == 8 if isinstance(vector, str) else vector == [0.6, 0.8]


# The client calls translations deprecated; the services of this cluster keep the route.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_audio(cluster: RunningGateway, connect: object) -> None:
    """A transcription and a translation, the model's name rewritten where it must be."""
    client = await connect(cluster)  # type: ignore[operator]
    sound = ("a.wav", io.BytesIO(b"RIFF" + bytes(3_000_000)))
    answer = await client.audio.transcriptions.create(model="whisper", file=sound)
    assert answer.text.endswith("model whisper")
    answer = await client.audio.translations.create(model="cluster", file=("a.wav", io.BytesIO(b"RIFF")))
    assert answer.text.endswith("model whisper")


async def test_models(cluster: RunningGateway, connect: object) -> None:
    """Each model once, as OpenAI lists them; on request also under its other names, all of which can be retrieved."""
    client = await connect(cluster)  # type: ignore[operator]
    assert [model.id async for model in client.models.list()] == ["cluster", "qwen", "minilm", "whisper"]
    names = [model.id async for model in client.models.list(extra_query={"aliases": True})]
    assert {"fast", "Qwen/Qwen", "embedding", "st/minilm", "Systran/whisper"} <= set(names)
    for name in names:
        assert (await client.models.retrieve(name)).id == name


@pytest.mark.parametrize("catalogue", ["models.yaml", "quickstart/models.yaml"])
async def test_whisper_1_works_out_of_the_box(
    start_backend: StartBackend, start_gateway: StartGateway, connect: object, catalogue: str
) -> None:
    """With the shipped catalogues: OpenAI's only name for years, which many applications do not let users change."""
    backend = await start_backend("transcription", model="whisper", kind="transcription", aliases="whisper-1")
    gateway = await start_gateway(backend, models=(ROOT / catalogue).read_text(encoding="utf-8"))
    client = await connect(gateway)  # type: ignore[operator]
    sound = ("a.wav", io.BytesIO(b"RIFF" + bytes(1000)))
    assert (await client.audio.transcriptions.create(model="whisper-1", file=sound)).text


async def test_names_of_openai_are_mapped_by_aliases(
    start_backend: StartBackend, start_gateway: StartGateway, connect: object
) -> None:
    """One setting for the cluster's own services and for foreign servers, which get their own name for the model."""
    catalogue = """
      chat: {kind: llm, hf_repo: org/chat, aliases: [gpt-4o, gpt-3.5-turbo]}
      minilm: {kind: embedding, hf_repo: st/minilm, aliases: [text-embedding-3-small]}
    """
    foreign = await start_backend("foreign", model="org/chat", ours=False)
    own = await start_backend("own", model="minilm", kind="embedding", aliases="text-embedding-3-small")
    client = await connect(await start_gateway(foreign, own, models=catalogue))  # type: ignore[operator]
    for name in ("gpt-4o", "gpt-3.5-turbo"):
        raw = await client.chat.completions.with_raw_response.create(model=name, messages=MESSAGES)
        assert raw.headers["x-served-model"] == "chat"
        assert foreign.requests[-1].json["model"] == "org/chat"
    assert (await client.embeddings.create(model="text-embedding-3-small", input="a")).data


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_errors_of_a_backend(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    connect: object,
    status: int,
    error: type[openai.APIStatusError],
) -> None:
    """A backend's error arrives as the client's class for it."""
    gateway = await start_gateway(await start_backend(fail_rate=1.0, fail_status=status))
    client = await connect(gateway)  # type: ignore[operator]
    with pytest.raises(error) as caught:
        await client.chat.completions.create(model="qwen", messages=MESSAGES)
    assert caught.value.code == "fail"
    assert caught.value.request_id


async def test_errors_of_the_gateway(start_backend: StartBackend, start_gateway: StartGateway, connect: object) -> None:
    """Unknown model, wrong kind, wrong key, dead service: the right class with the right code."""
    backend = await start_backend()
    gateway = await start_gateway(backend, gateway_api_keys="good")
    client = await connect(gateway, "good")  # type: ignore[operator]
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await client.embeddings.create(model="qwen", input="x")
    stranger = await connect(gateway, "bad")  # type: ignore[operator]
    with pytest.raises(openai.AuthenticationError) as refused:
        await stranger.chat.completions.create(model="qwen", messages=MESSAGES)
    assert refused.value.code == "invalid_api_key"
    await backend.stop()
    with pytest.raises(openai.InternalServerError) as down:
        await client.chat.completions.create(model="qwen", messages=MESSAGES)
    assert down.value.code == "no_healthy_backend"


async def test_cut_stream_raises(start_backend: StartBackend, start_gateway: StartGateway, connect: object) -> None:
    """A stream whose backend dies raises in the client, after the tokens that came."""
    gateway = await start_gateway(await start_backend(reset_after=2))
    client = await connect(gateway)  # type: ignore[operator]
    stream = await client.chat.completions.create(model="qwen", messages=MESSAGES, stream=True)
    texts = []

    async def read() -> None:
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIError, match="llm-primary failed"):
        await read()
    assert texts == ["", "token0 ", "token1 "]
