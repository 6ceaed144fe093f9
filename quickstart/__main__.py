"""Main program of `scripts/quickstart.sh`, after the installation: publish models, start, show usage, stop."""

import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kit.config.catalogue import Catalogue
from kit.config.settings import SettingsError
from quickstart import QuickstartError, preflight, smoke
from quickstart.home import check_disk, make_home
from quickstart.models.publish import choose_source, publish, write_catalogue
from quickstart.options import ROOT, Options, parse
from quickstart.plan import Plan, make_plan
from quickstart.processes.log_follower import follow_logs
from quickstart.processes.readiness import PUBLISH_SHARE, wait_listening, wait_ready
from quickstart.processes.session import stop_left_over
from quickstart.processes.supervisor import ProcessError, Supervisor
from quickstart.progress_display import ProgressDisplay

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run the quickstart. Exits with 0 on success, 1 with a message on an error, 130 on Ctrl-C."""
    options = parse()
    # Also SIGINT: shells start background processes with SIGINT ignored.
    for number in STOP_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        if options.stop:
            stop_left_over(options.home)
        else:
            run(options)
    except (QuickstartError, SettingsError) as error:
        print(f"\n{error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("\nStopped. All processes have ended; the next start reuses models and packages.")
        raise SystemExit(130) from None


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Stop on SIGTERM and SIGHUP as on Ctrl-C; ignore further signals, which would interrupt the shutdown."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(options: Options) -> None:
    """Start the cluster and stay with it. Raises QuickstartError, SettingsError."""
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
    origin = "the Hugging Face Hub" if source == "hub" else "packages (converted copies, see quickstart/packages.txt)"
    print(f"Models from {origin}; state and logs in {_display_path(options.home)}", flush=True)
    with Supervisor(options.home, plan.programs) as supervisor:
        try:
            serve(options, plan, catalogue, supervisor, began)
        except KeyboardInterrupt:
            print("\nStopping …", flush=True)
            raise


def serve(options: Options, plan: Plan, catalogue: Catalogue, supervisor: Supervisor, began: float) -> None:
    """Start the programs one by one, then run the smoke test or follow the logs."""
    supervisor.start(plan.registry.name)
    supervisor.start(plan.gateway.name)
    wait_listening(plan.registry, supervisor)
    with ProgressDisplay() as display:
        for program in plan.services:
            assert program.model is not None
            entry = catalogue.resolve(program.model)
            publish(entry, plan.registry, options.home, partial(display.show, program.name, share=PUBLISH_SHARE))
            supervisor.start(program.name)
        wait_ready(plan, supervisor, display)
    print(f"The cluster is ready after {time.monotonic() - began:.0f} s.", flush=True)
    if options.smoke:
        smoke.run(plan)
    else:
        print(how_to_use(plan))
        follow_until_interrupted(plan, supervisor)


def follow_until_interrupted(plan: Plan, supervisor: Supervisor) -> None:
    """Follow the logs until Ctrl-C. A failed program is reported once; the others continue."""
    reported = ""
    for _ in follow_logs(supervisor.logs, [program.name for program in plan.programs]):
        try:
            supervisor.check()
        except ProcessError as error:
            if str(error) != reported:
                reported = str(error)
                print(
                    f"\n{reported}\nThe other programs continue. Fix the problem and start the quickstart again.\n",
                    file=sys.stderr,
                )


def how_to_use(plan: Plan) -> str:
    """Return usage examples to copy and paste."""
    gateway = plan.gateway.url
    lines = [
        "",
        "Chat:",
        f"  curl {gateway}/v1/chat/completions -H 'Content-Type: application/json' \\",
        """    -d '{"messages": [{"role": "user", "content": "What is the capital of Japan?"}]}'""",
        "Embeddings:",
        f"""  curl {gateway}/v1/embeddings -H 'Content-Type: application/json' -d '{{"input": "Hello world"}}'""",
        "Transcription:",
        f"  curl {gateway}/v1/audio/transcriptions -F file=@quickstart/sentence.wav -F model=whisper",
        "OpenAI's Python client:",
        f"""  OpenAI(base_url="{gateway}/v1", api_key="none")""",
        "Dashboard, API documentation, models:",
        f"  {gateway}/dashboard   {gateway}/docs   {plan.registry.url}/models",
        "",
        "Logs follow. Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)


def _display_path(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    main()
