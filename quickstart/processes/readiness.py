"""Wait for the programs to become healthy, with their progress."""

import time
from typing import Any

import httpx2

from quickstart import QuickstartError
from quickstart.plan import Plan, Program
from quickstart.processes.supervisor import Supervisor
from quickstart.progress_display import ProgressDisplay

POLL_S = 0.3
TIMEOUT_S = 5.0
# Share of a service's progress for publishing its model; the rest is for downloading and loading it.
PUBLISH_SHARE = 0.5


def wait_listening(program: Program, supervisor: Supervisor) -> None:
    """Wait until `/health` of `program` is 200. Raises ProcessError if it has failed."""
    with httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        while _health(client, program)[0] != 200:
            supervisor.check(starting=True)
            time.sleep(POLL_S)


def wait_ready(plan: Plan, supervisor: Supervisor, display: ProgressDisplay) -> None:
    """Wait until every service is healthy and the gateway reports it.

    Raises ProcessError if a process has failed, another QuickstartError if a model failed to load.
    """
    pending = list(plan.services)
    with httpx2.Client(timeout=TIMEOUT_S, trust_env=False) as client:
        while pending:
            for program in list(pending):
                status, body = _health(client, program)
                if status == 200:
                    display.show(program.name, 1.0, f"ready: {body.get('model', '')} on port {program.port}")
                    pending.remove(program)
                elif body.get("status") == "failed":
                    raise QuickstartError(
                        f"{program.name} could not load its model: {body.get('detail')}\n"
                        f"See its log: {supervisor.logs / program.name}.log"
                    )
                else:
                    done = PUBLISH_SHARE + float(body.get("progress", 0.0)) * (1 - PUBLISH_SHARE)
                    display.show(program.name, done, str(body.get("detail", "starting")))
            supervisor.check(starting=True)
            time.sleep(POLL_S)
        while not _gateway_reports_all_healthy(client, plan):
            supervisor.check(starting=True)
            time.sleep(POLL_S)
    display.show("gateway", 1.0, f"ready: on port {plan.gateway.port}")


def _health(client: httpx2.Client, program: Program) -> tuple[int, dict[str, Any]]:
    """Return status and body of `/health`; (0, {}) if nothing listens."""
    try:
        response = client.get(f"{program.url}/health")
    except httpx2.HTTPError:
        return 0, {}
    return response.status_code, response.json()


def _gateway_reports_all_healthy(client: httpx2.Client, plan: Plan) -> bool:
    try:
        services = client.get(f"{plan.gateway.url}/services").raise_for_status().json()
    except httpx2.HTTPError:
        return False
    return bool(services["healthy"] == len(plan.services))
