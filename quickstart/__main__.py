"""`scripts/quickstart.sh` after the installation: publish the models, start everything, show how to use it, stop it."""

import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kit.config.catalogue import Catalogue
from kit.config.settings import SettingsError
from quickstart import preflight, smoke
from quickstart.home import HomeError, check_disk, make_home
from quickstart.models.packaged_models import PackagesError
from quickstart.models.publish import PublishError, choose_source, publish, write_catalogue
from quickstart.options import ROOT, Options, parse
from quickstart.plan import Plan, make_plan
from quickstart.processes.log_follower import follow
from quickstart.processes.readiness import PUBLISH_SHARE, NotReadyError, wait_listening, wait_ready
from quickstart.processes.session import stop_left_over
from quickstart.processes.supervisor import ManagerError, ProcessError, Supervisor
from quickstart.progress_display import Board

EXPECTED = (
    HomeError,
    preflight.PreflightError,
    ManagerError,
    ProcessError,
    PackagesError,
    PublishError,
    NotReadyError,
    SettingsError,
    smoke.SmokeError,
)


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run the quickstart; exits 0 on a clean end, 1 with a message when something is off, 130 on Ctrl-C."""
    options = parse()
    # SIGINT too: a shell that starts a program in the background has it ignore Ctrl-C.
    for number in ENDING:
        signal.signal(number, _interrupt)
    try:
        if options.stop:
            stop_left_over(options.home)
        else:
            run(options)
    except EXPECTED as error:
        print(f"\n{error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nStopped. Everything has ended; the next start reuses models and packages.")
        raise SystemExit(130) from None


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """A closed terminal or a `kill` ends the cluster as Ctrl-C does. A second one must not break the ending off."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(options: Options) -> None:
    """Start the cluster and stay with it. Raises one of EXPECTED."""
    began = time.monotonic()
    make_home(options.home)
    check_disk(options.home)
    catalogue_path = options.home / "models.yaml"
    source = choose_source(options.models, catalogue_path)
    catalogue = write_catalogue(catalogue_path, source, vision=options.with_vision)
    plan = make_plan(
        catalogue, catalogue_path, options.home, vision=options.with_vision, port_offset=options.port_offset
    )
    preflight.check(options.home, plan.programs)
    where = "the Hugging Face Hub" if source == "hub" else "packages (converted copies, see quickstart/packages.txt)"
    print(f"Models from {where}; state and logs in {_shown(options.home)}", flush=True)
    with Supervisor(options.home, plan.programs) as supervisor:
        try:
            serve(options, plan, catalogue, supervisor, began)
        except KeyboardInterrupt:
            print("\nStopping …", flush=True)
            raise


def serve(options: Options, plan: Plan, catalogue: Catalogue, supervisor: Supervisor, began: float) -> None:
    """Start the programs one by one, then do what was asked for."""
    supervisor.start(plan.registry.name)
    supervisor.start(plan.gateway.name)
    wait_listening(plan.registry, supervisor)
    with Board() as board:
        for program in plan.services:
            assert program.model is not None
            entry = catalogue.resolve(program.model)
            publish(entry, plan.registry, options.home, partial(_show_publishing, board, program.name))
            supervisor.start(program.name)
        wait_ready(plan, supervisor, board)
    print(f"The cluster answers after {time.monotonic() - began:.0f} s.", flush=True)
    if options.smoke:
        smoke.run(plan)
    else:
        print(how_to_use(plan))
        stay(plan, supervisor)


def _show_publishing(board: Board, name: str, done: float, detail: str) -> None:
    board.show(name, done * PUBLISH_SHARE, detail)


def stay(plan: Plan, supervisor: Supervisor) -> None:
    """Follow the logs until Ctrl-C. A program that has given up is told once; the others go on."""
    told = ""
    for _ in follow(supervisor.logs, [program.name for program in plan.programs]):
        try:
            supervisor.check()
        except ProcessError as error:
            if str(error) != told:
                told = str(error)
                print(f"\n{told}\nThe rest goes on. Mend it and start again.\n", file=sys.stderr)


def how_to_use(plan: Plan) -> str:
    """Commands to copy and paste."""
    gateway = plan.gateway.url
    lines = [
        "",
        "Ask a model:",
        f"  curl {gateway}/v1/chat/completions -H 'Content-Type: application/json' \\",
        """    -d '{"messages": [{"role": "user", "content": "What is the capital of Japan?"}]}'""",
        "Embed a text:",
        f"""  curl {gateway}/v1/embeddings -H 'Content-Type: application/json' -d '{{"input": "Hello world"}}'""",
        "Transcribe speech:",
        f"  curl {gateway}/v1/audio/transcriptions -F file=@quickstart/sentence.wav -F model=whisper",
        "With the official Python client:",
        f"""  OpenAI(base_url="{gateway}/v1", api_key="none")""",
        "See the cluster:",
        f"  {gateway}/dashboard   {gateway}/docs   {plan.registry.url}/models",
        "",
        "The logs follow. Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    main()
