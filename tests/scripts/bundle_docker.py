"""A fake `docker` for tests of bundle.sh: containers of the registry's image run as processes of this checkout.

FAKE_DOCKER/machine/images.json lists the engine's images, name -> ID; `docker save` and `docker load` use it.
FAKE_DOCKER/store is the store. Other commands get the output of a healthy engine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(os.environ["FAKE_DOCKER"])
IMAGES = HOME / "machine" / "images.json"
REGISTRY = "gpu-cluster/registry:1"
RESPONSES = {
    "version --format": "28.5.2",
    "compose version": "2.40.3",
    "compose -f docker-compose.gpu-cluster.yml config --format json": "{}",
    "compose -f docker-compose.gpu-cluster.yml config": f"services:\n  registry:\n    image: {REGISTRY}",
}


def main(words: list[str]) -> int:
    """Handle one call."""
    line = " ".join(words)
    with (HOME / "calls").open("a") as calls:
        calls.write(line + "\n")
    images = json.loads(IMAGES.read_text())
    if words[:2] == ["image", "inspect"]:
        if words[-1] not in images:
            return 1
        print(images[words[-1]])
    elif words[0] == "save":
        Path(words[2]).write_text(json.dumps({name: images[name] for name in words[3:]}) + " " * 200_000)
    elif words[0] == "load":
        IMAGES.write_text(json.dumps(images | json.loads(Path(words[2]).read_text())))
    elif words[0] == "run" and words[-2:] == ["-m", "kit.tools.compose_plan"]:
        sys.stdin.read()
        print("".join(f"image\t{name}\tbuild\tx\n" for name in (REGISTRY, "gpu-cluster/llm:1")), end="")
    elif words[0] == "run" or (words[0] == "compose" and "run" in words):
        return run_registry(words, images)
    else:
        print(next((response for start, response in RESPONSES.items() if line.startswith(start)), ""))
    return 0


def run_registry(words: list[str], images: dict[str, str]) -> int:
    """Run the registry's program; paths in volumes are replaced by those of the host."""
    if REGISTRY not in images:
        print(f"No such image: {REGISTRY}", file=sys.stderr)
        return 125
    mounts = [words[at + 1].split(":") for at, word in enumerate(words) if word == "--volume"]
    name = REGISTRY if words[0] == "run" else "registry"
    arguments = words[words.index(name) + 1 :]
    for folder, inside, *_ in mounts:
        arguments = [
            folder + word.removeprefix(inside) if word == inside or word.startswith(inside + "/") else word
            for word in arguments
        ]
    environment = {**os.environ, "STORE": f"file:{HOME / 'store'}", "PATH": os.environ["REAL_PATH"]}
    return subprocess.run([sys.executable, "-m", "registry", *arguments], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
