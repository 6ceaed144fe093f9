"""Import a bundle and load its models with every Hugging Face client, without a network: run in `unshare -rn`.

    python -m tests.registry.no_network BUNDLE PUBLIC_KEY WORK

BUNDLE holds the models minilm, smollm2 and whisper; they are verified and imported into a store below WORK, which the
registry then serves, inside too. Prints a line per step and per client that loaded and computed.
"""

import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2

PORT = 8090
START_S = 60
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41


def main() -> None:
    """Set up the loopback interface, check that it is the only one, import, start the registry, load the models."""
    bundle, key, work = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    store = work / "store"
    _loopback_up()
    _prove_no_network()
    for command in ("verify", "import"):
        arguments = [sys.executable, "-m", "registry", command, bundle, "--key", key]
        subprocess.run(arguments, env={**os.environ, "STORE": f"file:{store}"}, stdout=subprocess.DEVNULL, check=True)
        print(f"registry {command}", flush=True)
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{PORT}",
        "HF_HOME": str(work / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
    }
    environment = {**os.environ, "STORE": f"file:{store}", "PORT": str(PORT), "LOG_LEVEL": "warning"}
    registry = subprocess.Popen([sys.executable, "-m", "registry", "serve"], env=environment)
    try:
        _wait_for_health(registry)
        _load_everything(work)
    finally:
        registry.terminate()
        registry.wait()


def _load_everything(work: Path) -> None:
    command = [str(Path(sys.executable).with_name("hf")), "download", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    subprocess.run([*command, "--local-dir", str(work / "cli")], check=True, stdout=subprocess.DEVNULL)
    assert (work / "cli" / "config.json").exists()
    print("hf download", flush=True)

    # Imported only now: the client reads HF_ENDPOINT when it is imported.
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download("smollm2"))
    assert (folder / "tokenizer.json").exists()
    print("snapshot_download", flush=True)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert tokenizer.decode(tokenizer("hello world")["input_ids"]) == "hello world"
    model: Any = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")
    asked = tokenizer("The capital of France is", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**asked, max_new_tokens=8, do_sample=False)[0])
    assert "Paris" in answer, answer
    print("AutoModelForCausalLM", flush=True)

    from sentence_transformers import SentenceTransformer

    embedding = SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2", device="cpu").encode("hello")
    assert embedding.shape == (384,)
    print("SentenceTransformer", flush=True)

    from faster_whisper import WhisperModel  # type: ignore[import-untyped]  # ships no types

    whisper = WhisperModel("Systran/faster-whisper-base", device="cpu", compute_type="int8")
    segments, _ = whisper.transcribe("quickstart/sentence.wav", language="en")
    assert len("".join(segment.text for segment in segments)) > 10
    print("WhisperModel", flush=True)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def _prove_no_network() -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("192.0.2.1", 80)) == errno.ENETUNREACH


def _wait_for_health(registry: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert registry.poll() is None, "the registry ended"
        try:
            if httpx2.get(f"http://127.0.0.1:{PORT}/health").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError("the registry did not answer")


if __name__ == "__main__":
    main()
