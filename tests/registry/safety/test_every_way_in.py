"""The same inspection of a model from a Hub, from a folder and from a bundle: what is refused, and why."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.hub.listing import git_blob_sha1
from registry.models.library import Library
from registry.models.manifest import FileEntry, LeftOut, Source, commit_of, entry_of
from tests.registry.bundles import KEY, new_library, write
from tests.registry.conftest import Run
from tests.support import plain_http
from tests.support.hub import serving_registry, wait_for_job
from tests.support.weights import safetensors

Files = dict[str, bytes]
WaysIn = Callable[..., str]


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


EVIL = pickle.dumps(RunsCode())
EVIL_TEXT = b"cos\nsystem\n(S'true'\ntR."
WEIGHTS = safetensors("w", 5000)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 4200000000\n" % (b"a" * 64)


def publish_unchecked(library: Library, files: Files, left_out: tuple[LeftOut, ...] = ()) -> None:
    """Publish `m` (o/m) as a registry without an inspection would."""
    entries = [store(library, path, content) for path, content in files.items()]
    source = Source(kind="folder", place="x")
    library.publish(
        name="m", repo="o/m", revision="main", commit=commit_of(entries), files=entries, source=source,
        left_out=left_out,
    )  # fmt: skip


def store(library: Library, path: str, content: bytes) -> FileEntry:
    sha256, sha1 = hashlib.sha256(content).hexdigest(), git_blob_sha1(len(content))
    sha1.update(content)
    library.store.put_blob(sha256, len(content), [content])
    return entry_of(path, len(content), sha256, sha1.hexdigest())


@pytest.fixture(params=["hub", "folder", "bundle"])
def way_in(request: pytest.FixtureRequest, tmp_path: Path, registry: Run) -> WaysIn:
    """Bring a model in; return the reason for the refusal, "" if it is published."""

    def from_hub(files: Files) -> str:
        publish_unchecked(new_library(tmp_path / "hub"), files)
        with (
            serving_registry(tmp_path / "hub") as hub,
            serving_registry(tmp_path / "store", hf_endpoint=hub) as url,
        ):
            patterns = {"ignore_patterns": ["none"]}  # no preference for safetensors, as in a folder
            plain_http.post(f"{url}/models/m/download", json={"hf_repo": "o/m", **patterns})
            return str(wait_for_job(url, "m").get("error", ""))

    def from_folder(files: Files) -> str:
        for path, content in files.items():
            (tmp_path / "m" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "m" / path).write_bytes(content)
        done = registry("import", "m", str(tmp_path / "m"), "--repo", "o/m", store=tmp_path / "store")
        assert done.returncode == (78 if done.stderr else 0), done
        return done.stderr

    def from_bundle(files: Files, left_out: tuple[LeftOut, ...] = ()) -> str:
        origin = new_library(tmp_path / "origin")
        publish_unchecked(origin, files, left_out)
        write(origin, tmp_path / "bundle")
        key = KEY.public.text
        done = registry("import", str(tmp_path / "bundle"), "--key", key, store=tmp_path / "store")
        assert done.returncode == (1 if done.stderr else 0), done
        return done.stderr

    return {"hub": from_hub, "folder": from_folder, "bundle": from_bundle}[request.param]


def is_published(tmp_path: Path) -> bool:
    return [name.name for name in new_library(tmp_path / "store").names()] == ["m"]


def index(*shards: str) -> bytes:
    return json.dumps({"weight_map": {f"layer.{number}": shard for number, shard in enumerate(shards)}}).encode()


def zipped(name: str, content: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(name, content)
    return whole.getvalue()


def with_second_directory(*, zip64: bool) -> bytes:
    """An archive in which Python finds a harmless data.pkl, and miniz, torch's reader, one that runs code.

    Python reads the directory in front of the end, miniz the one whose offset the end states.
    """
    evil, harmless = zipped("a/data.pkl", EVIL), zipped("a/data.pkl", b"N.")
    at, other = evil.index(b"PK\x01\x02"), harmless.index(b"PK\x01\x02")
    files, evil_directory = evil[:at], evil[at:-22]
    file, directory = harmless[:other], bytearray(harmless[other:-22])
    length = len(directory)
    if zip64:
        directory[42:46] = struct.pack("<I", len(files))
        at = len(files + file)
        ends = [
            struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, length, offset)
            for offset in (at, at + length + 56)
        ]
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at + length, 1)
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, length, 0xFFFFFFFF, 0)
        return files + file + evil_directory + ends[0] + directory + ends[1] + locator + end
    # Python adds the distance between the two directories to every offset.
    gap = bytes(max(length - len(files), 0))
    directory[42:46] = struct.pack("<I", len(files + gap) - length)
    at = len(files + gap + file)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, length, at, 0)
    return files + gap + file + evil_directory + directory + end


def array(descr: str) -> bytes:
    """An array of numpy whose objects run code."""
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head + EVIL


def tarred(name: str, content: bytes) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return whole.getvalue()


def gguf(tensor_bytes: int) -> bytes:
    """A GGUF file of version 3 with one key and one tensor of 256 numbers (F32), of which `tensor_bytes` are there."""
    key, name = b"general.architecture", b"token_embd.weight"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 256, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(tensor_bytes)


def header(content: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + data


INCOMPLETE: dict[str, tuple[Files, str]] = {
    "lfs pointer": ({"model.safetensors": POINTER}, "model.safetensors of o/m is a Git LFS pointer.*`git lfs pull`"),
    "lfs pointer for a tokenizer": ({"model.safetensors": WEIGHTS, "tokenizer.json": POINTER}, "tokenizer.json.*LFS"),
    "lfs pointer with line breaks of Windows": (
        {"tokenizer.model": POINTER.replace(b"\n", b"\r\n")},
        "tokenizer.model of o/m is a Git LFS pointer",
    ),
    "index of an absent shard": (
        {"model.safetensors.index.json": index("a.safetensors", "b.safetensors"), "a.safetensors": WEIGHTS},
        "model.safetensors.index.json of o/m lists 'b.safetensors', which the model does not have",
    ),
    "index in a folder": ({"unet/x.safetensors.index.fp16.json": index("x.safetensors")}, "lists 'x.safetensors'"),
    "index of pickles": ({"pytorch_model.bin.index.json": index("p.bin")}, "lists 'p.bin'"),
    "index without weights": ({"model.safetensors.index.json": b"{}"}, "no weight_map"),
    "index of nothing": ({"model.safetensors.index.json": index()}, "does not map tensors to files"),
    "index of numbers": (
        {"model.safetensors.index.json": b'{"weight_map": {"w": 1}}'},
        "does not map tensors to files",
    ),
    "missing shard": (
        {"q-00001-of-00003.gguf": gguf(1024), "q-00003-of-00003.gguf": gguf(1024)},
        "q-00002-of-00003.gguf, to which q-0000[13]-of-00003.gguf belongs, is missing",
    ),
    "truncated weights": ({"model.safetensors": WEIGHTS[:-1]}, "promises 5000 bytes, the file has 4999"),
    "truncated header": ({"model.safetensors": WEIGHTS[:100]}, "its header needs 128 bytes, the file has 100"),
    "longer than its header": ({"model.safetensors": WEIGHTS + b"!"}, "ends with 5000 bytes, the file has 5001"),
    "a web page": ({"model.safetensors": b"<!DOCTYPE html><p>Sign in" + bytes(200)}, "would have .* bytes"),
    "header of no object": ({"model.safetensors": header([])}, "not a JSON object"),
    "tensor without offsets": ({"model.safetensors": header({"w": {}})}, "'w' has no data_offsets"),
    "tensor without a type": (
        {"model.safetensors": header({"w": {"data_offsets": [0, 0]}})},
        "'w' has no dtype and shape",
    ),
    "tensor of another shape": (
        {"model.safetensors": header({"w": {"dtype": "F32", "shape": [100], "data_offsets": [0, 4]}}, bytes(4))},
        "'w' has 4 bytes, which its type and shape contradict",
    ),
    "gap between tensors": (
        {"model.safetensors": header({"w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"ab")},
        "no tensor has the bytes from 0 to 1",
    ),
    "empty weights": ({"model.safetensors": b""}, "is empty"),
    "empty pickle": ({"pytorch_model.bin": b""}, "is empty"),
    "truncated gguf": ({"q4.gguf": gguf(1023)}, "q4.gguf of o/m is truncated: .* promises 1152 bytes, .* has 1151"),
    "truncated gguf header": ({"q4.gguf": gguf(1024)[:60]}, "its header is not complete"),
    "not gguf": ({"q4.gguf": b"ggml" + bytes(100)}, "does not begin with GGUF"),
    "truncated archive": ({"pytorch_model.bin": zipped("archive/data.pkl", b"N.")[:-30]}, "archive has no end"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_incomplete_model_is_refused(way_in: WaysIn, case: str, tmp_path: Path) -> None:
    """R4: all that headers, indexes and names of shards say, before an engine fails on it."""
    files, reason = INCOMPLETE[case]
    refusal = way_in({"config.json": b"{}", **files})
    assert refusal
    assert_matches(reason, refusal)
    assert not is_published(tmp_path)


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


CODE: dict[str, tuple[Files, str]] = {
    "pickle": ({"pytorch_model.bin": EVIL}, r"runs code when it is loaded \((posix|nt)\.system\)"),
    "joblib with compression": ({"model.joblib": zlib.compress(EVIL)}, r"is compressed \(zlib\)"),
    "gzip": ({"model.pkl": gzip.compress(EVIL)}, r"is compressed \(gzip\)"),
    "gzip with two endings": ({"model.pkl.gz": gzip.compress(EVIL)}, r"is compressed \(gzip\)"),
    "gzip under another ending": ({"model.weights": gzip.compress(EVIL)}, "is a compressed pickle"),
    "gzip without another ending": ({"model.gz": gzip.compress(EVIL)}, "is a compressed pickle"),
    "protocol 0 in gzip": ({"model.gz": gzip.compress(EVIL_TEXT)}, "runs code"),
    "tar": ({"model.pt": tarred("data.pkl", EVIL)}, "is a tar archive"),
    "tar under another ending": ({"model.x": tarred("data.pkl", EVIL)}, "is a tar archive"),
    "protocol 0, torch's old ending": ({"weights.th": EVIL_TEXT}, r"runs code when it is loaded \(os\.system\)"),
    "protocol 0, any ending": ({"weights.xyz": EVIL_TEXT}, r"runs code when it is loaded \(os\.system\)"),
    "number that parsers reject": ({"pytorch_model.bin": b"I0x10\n0" + EVIL_TEXT}, "runs code"),
    "after other pickles": ({"a.pkl": pickle.dumps([1]) * 3 + b"I0x10\n0" + EVIL_TEXT}, "runs code"),
    "archive at the end of a pickle": ({"a.pkl": EVIL + zipped("b.txt", b"harmless")}, "two files in one"),
    "archive in an archive": ({"a.zip": zipped("b.pt", zipped("data.pkl", EVIL))}, "archive in an archive"),
    "entry that parsers reject": ({"a.pt": zipped("a/data.pkl", b"I0x10\n0" + EVIL_TEXT)}, "runs code"),
    "second directory of an archive": ({"a.pt": with_second_directory(zip64=False)}, "a second directory"),
    "second directory of a zip64": ({"a.bin": with_second_directory(zip64=True)}, "a second directory"),
    "entry with the name of a folder": ({"a.npz": zipped("x/", array("'|O'"))}, "contains x/, which runs code"),
    "array of objects": ({"a.npy": array("'object'")}, "runs code"),
    "array with fields of objects": ({"a.npy": array("[('f', 'object')]")}, "runs code"),
    "name that ends a list": (
        {"a.pkl": b"\x80\x04\x8c\x01a\x8c\x03b\n.\x93" + b"0" + EVIL[2:]},
        "runs code",
    ),
    "no pickle": ({"weights.pt": bytes(1000)}, "neither a pickle nor a zip archive"),
    "7z": ({"weights.bin": b"7z\xbc\xaf\x27\x1c" + bytes(100)}, "is a 7z archive"),
    "auto_map": ({"config.json": b'{"auto_map": {"AutoModel": "a/b--c.D"}}'}, "loads code from a/b"),
    "auto_map in a part": ({"config.json": b'{"text_config": {"auto_map": ["a/b--c.D"]}}'}, "loads code from a/b"),
    "auto_map after 4 MiB": (
        {"config.json": b'{"pad": "%s", "auto_map": {"AutoModel": "a/b--c.D"}}' % (b"x" * (4 << 20))},
        "loads code from a/b",
    ),
    "configuration too large": ({"config.json": b'{"pad": "%s"}' % (b"x" * (16 << 20))}, "too large to check for code"),
    "configuration too deep": ({"config.json": b'{"a":' * 100_000}, "nested too deeply"),
    "adapter_config.json": ({"adapter_config.json": b'{"auto_map": {"x": "a/b--c.D"}}'}, "loads code from a/b"),
    "configuration of a version": (
        {
            "config.json": b'{"configuration_files": ["config.4.0.0.json"]}',
            "config.4.0.0.json": b'{"auto_map": {"AutoConfig": "a/b--c.D"}}',
        },
        "config.4.0.0.json of o/m loads code from a/b",
    ),
    "processor": ({"processor_config.json": b'{"auto_map": {"x": "a/b--c.D"}}'}, "loads code from a/b"),
    "modules.json": ({"modules.json": b'[{"idx": 0, "type": "a/b--c.D"}]'}, "loads code from a/b"),
    "adapter's library": ({"adapter_config.json": b'{"auto_mapping": {"parent_library": "os"}}'}, "imports os"),
}


@pytest.mark.parametrize("case", CODE)
def test_code_is_refused(way_in: WaysIn, case: str, tmp_path: Path) -> None:
    """X4, X8, X9: pickles in every wrapping, and code from other repositories."""
    files, reason = CODE[case]
    refusal = way_in({"model.safetensors": WEIGHTS, **files})
    assert_matches(reason, refusal)
    assert not is_published(tmp_path)


def test_complete_model_is_published(way_in: WaysIn, tmp_path: Path) -> None:
    """With shards, an index, harmless pickles, compressed text, and texts that begin like a pickle."""
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    refusal = way_in(
        {
            "config.json": b'{"auto_map": {"AutoModel": "modeling.Model"}}',
            "model.safetensors.index.json": index(*shards),
            **dict.fromkeys(shards, WEIGHTS),
            "pytorch_model.bin.index.json": index("pytorch_model-00001-of-00001.bin"),
            "q4.gguf": gguf(1024),
            "colbert_linear.pt": pickle.dumps({"weights": [1.0]}),
            "model.bin": b"\x06\0\0\0\x0c\0WhisperSpec\0" + bytes(100),
            "bpe.txt.gz": gzip.compress(b"a b\n"),
            "vocab.gz": gzip.compress(b"cat\ndog\n"),
            "vocab.txt": b"cat\ndog\nRabbit\n",
            "LICENSE": b"copyright\n\nRedistribution",
        }
    )
    assert refusal == ""
    assert is_published(tmp_path)


@pytest.mark.parametrize("way_in", ["bundle"], indirect=True)
def test_file_that_the_source_left_out_is_not_missing(way_in: WaysIn, tmp_path: Path) -> None:
    """An index may list a shard that patterns left out: the manifest in the bundle says so."""
    shards = ("a.safetensors", "b.safetensors")
    left_out = (LeftOut(path="b.safetensors", reason="in ignore_patterns"),)
    assert way_in({"x.safetensors.index.json": index(*shards), "a.safetensors": WEIGHTS}, left_out) == ""
    manifest = new_library(tmp_path / "store").manifest("o/m", "main")
    assert manifest.left_out == left_out


@pytest.mark.parametrize("way_in", ["folder", "bundle"], indirect=True)
def test_settings_accept_what_they_accept_from_a_hub(way_in: WaysIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """PICKLE_FILES and REMOTE_CODE."""
    monkeypatch.setenv("PICKLE_FILES", "allow")
    monkeypatch.setenv("REMOTE_CODE", "yes")
    assert way_in({"pytorch_model.bin": EVIL, "config.json": CODE["auto_map"][0]["config.json"]}) == ""
