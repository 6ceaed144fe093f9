"""Summary of a compose project, for scripts on a host without Python and jq.

Reads `docker compose config --format json` on stdin and writes tab-separated lines. Services that are switched off
(0 replicas) are skipped; images that only they need are listed as `off`.

image    IMAGE  build|pull  SERVICE,...    an image that is needed
off      IMAGE  build|pull  SERVICE,...    an image that only switched-off services need
port     ADDRESS  PORT  SERVICE            a published port
gpu      ID  SERVICE                       a reserved GPU: number, UUID or `all`
model    SERVICE  MODEL                    the model that a service runs
open     SERVICE                           a service whose network is not internal
volume   KEY  NAME                         a volume of the file and its name in Docker
config   KEY  FILE                         a mounted configuration file
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]


def lines(project: Json) -> Iterator[tuple[str, ...]]:
    """Yield the lines for a project as resolved by `docker compose config`."""
    services: dict[str, Json] = project.get("services") or {}
    running = {name: service for name, service in services.items() if _replicas(service) > 0}
    switched_off = {name: service for name, service in services.items() if name not in running}
    needed = dict(_images(running))
    for image, (how, users) in needed.items():
        yield "image", image, how, users
    for image, (how, users) in _images(switched_off):
        if image not in needed:
            yield "off", image, how, users
    networks: dict[str, Json] = project.get("networks") or {}
    for name, service in running.items():
        yield from _service(name, service, networks)
    for key, volume in (project.get("volumes") or {}).items():
        yield "volume", key, str((volume or {}).get("name") or key)
    for key, config in (project.get("configs") or {}).items():
        if config.get("file"):
            yield "config", key, str(config["file"])


def _service(name: str, service: Json, networks: dict[str, Json]) -> Iterator[tuple[str, ...]]:
    for port in service.get("ports") or ():
        if port.get("published"):
            yield "port", port.get("host_ip") or "0.0.0.0", str(port["published"]), name  # noqa: S104  # compose's default
    reservations = ((service.get("deploy") or {}).get("resources") or {}).get("reservations") or {}
    for device in [*(reservations.get("devices") or ()), *(service.get("gpus") or ())]:
        for gpu in device.get("device_ids") or ["all"]:
            yield "gpu", str(gpu), name
    model = (service.get("environment") or {}).get("MODEL")
    if model:
        yield "model", name, str(model)
    mode = service.get("network_mode")
    attached = [networks.get(network) or {} for network in service.get("networks") or ()]
    if mode not in (None, "none") or any(not network.get("internal") for network in attached):
        yield "open", name


def _images(services: dict[str, Json]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (image, (build or pull, services)), built images first."""
    users: dict[str, list[str]] = {}
    built: set[str] = set()
    for name, service in services.items():
        image = str(service.get("image") or "")
        if image:
            users.setdefault(image, []).append(name)
            if service.get("build"):
                built.add(image)
                # first a service that can build the image
                users[image].sort(key=lambda user: not services[user].get("build"))
    for image in sorted(users, key=lambda image: (image not in built, image)):
        yield image, ("build" if image in built else "pull", ",".join(users[image]))


def _replicas(service: Json) -> int:
    replicas = (service.get("deploy") or {}).get("replicas", service.get("scale"))
    return 1 if replicas is None else int(replicas)


def main() -> None:
    """Read stdin and write the lines."""
    for line in lines(json.load(sys.stdin)):
        sys.stdout.write("\t".join(line) + "\n")


if __name__ == "__main__":
    main()
