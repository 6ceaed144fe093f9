"""Waiting until the cluster answers, with what each part says of itself."""

import time
from typing import Any

import httpx2

from quickstart import loopback
from quickstart.plan import Plan, Program
from quickstart.processes.supervisor import Supervisor
from quickstart.progress_display import Board

POLL_S = 0.3
ANSWER_S = 5.0
# Of a service's bar: putting its model into the registry is the first half, fetching and loading it the second.
PUBLISH_SHARE = 0.5


class NotReadyError(Exception):
    """A part of the cluster says that it will not come; the message holds its reason."""


def wait_listening(program: Program, supervisor: Supervisor) -> None:
    """Return when `program` answers `/health` with 200. Raises ProcessError when it has given up."""
    with loopback.client(ANSWER_S) as client:
        while _health(client, program)[0] != 200:
            supervisor.check(starting=True)
            time.sleep(POLL_S)


def wait_ready(plan: Plan, supervisor: Supervisor, board: Board) -> None:
    """Return when every service is healthy and the gateway sees it so.

    Raises ProcessError when a process has given up, NotReadyError when a model failed to load.
    """
    waiting = list(plan.services)
    with loopback.client(ANSWER_S) as client:
        while waiting:
            for program in list(waiting):
                status, body = _health(client, program)
                if status == 200:
                    board.show(program.name, 1.0, f"ready: {body.get('model', '')} on port {program.port}")
                    waiting.remove(program)
                elif body.get("status") == "failed":
                    raise NotReadyError(
                        f"{program.name} could not load its model: {body.get('detail')}\n"
                        f"Its log: {supervisor.logs / program.name}.log"
                    )
                else:
                    done = PUBLISH_SHARE + float(body.get("progress", 0.0)) * (1 - PUBLISH_SHARE)
                    board.show(program.name, done, str(body.get("detail", "starting")))
            supervisor.check(starting=True)
            time.sleep(POLL_S)
        while not _gateway_sees_all(client, plan):
            supervisor.check(starting=True)
            time.sleep(POLL_S)
    board.show("gateway", 1.0, f"ready: on port {plan.gateway.port}")


def _health(client: httpx2.Client, program: Program) -> tuple[int, dict[str, Any]]:
    """Status and body of `/health`; (0, {}) while nothing listens yet."""
    try:
        answer = client.get(f"{program.url}/health")
    except httpx2.HTTPError:
        return 0, {}
    return answer.status_code, answer.json()


def _gateway_sees_all(client: httpx2.Client, plan: Plan) -> bool:
    try:
        services = client.get(f"{plan.gateway.url}/services").raise_for_status().json()
    except httpx2.HTTPError:
        return False
    return bool(services["healthy"] == len(plan.services))
