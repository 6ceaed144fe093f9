"""Scan the root file system of an image for unwanted files."""

import json

from tests.support.programs.docker import docker

# Runs inside the image as root, with the image's Python.
PROGRAM = r"""
import collections, json, os, re, stat

INSTALLERS = re.compile(r"(pip[\d.]*|uv|wheel|easy_install|conda|poetry)$")
COMPILERS = re.compile(r"(gcc|g\+\+|cc|c\+\+|cc1|clang|make|cmake|ld|nvcc|ninja|rustc|cargo|go)(-[\d.]+)?$")
LIBRARIES = {"pip", "setuptools", "wheel", "ensurepip", "pkg_resources"}
TEST_PACKAGES = {"pytest", "_pytest", "xdist", "hypothesis", "nose", "mypy", "ruff", "tests", "test"}
SECRETS = re.compile(r"(\.env(\..*)?|\.netrc|\.pypirc|pip\.conf|id_(rsa|ecdsa|ed25519)|.*\.(key|p12|pfx))$")
# Writable on every Linux system, and the mount points of our volumes.
OPEN = {"/tmp", "/var/tmp", "/run/lock", "/var/lock", "/dev", "/proc", "/sys", "/models", "/spool"}
found = collections.defaultdict(list)

for folder, folders, files in os.walk("/"):
    if folder in ("/proc", "/sys", "/dev"):
        folders.clear()
        continue
    packages = "-packages" in folder
    for name in list(folders):
        path = os.path.join(folder, name)
        if name == ".git":
            found["history"].append(path)
        package = re.sub(r"-[\d.]+\.dist-info$", "", name)
        if packages and package in LIBRARIES:
            found["installer"].append(path)
        if packages and package in TEST_PACKAGES:
            found["test"].append(path)
        mode = os.lstat(path)
        ours = mode.st_uid == 10001 and mode.st_mode & stat.S_IWUSR
        if (ours or mode.st_mode & stat.S_IWOTH) and not os.path.islink(path) and path not in OPEN:
            found["writable"].append(path)
    for name in files:
        path = os.path.join(folder, name)
        if folder.startswith(("/var/lib/apt/lists", "/var/cache/apt", "/root/.cache", "/root/.npm")):
            found["cache"].append(path)
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            continue
        if mode & 0o111 and "/bin" in folder:
            if INSTALLERS.match(name):
                found["installer"].append(path)
            if COMPILERS.match(name):
                found["compiler"].append(path)
        if SECRETS.match(name):
            found["secret"].append(path)
        if os.path.getsize(path) < 1 << 20 and not name.endswith((".so", ".pyc")):
            with open(path, "rb") as stream:
                if re.search(rb"^-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}", stream.read(), re.MULTILINE):
                    found["secret"].append(path)

print(json.dumps(found))
"""


def scan(image: str) -> dict[str, list[str]]:
    """Return the unwanted files of an image by kind."""
    found: dict[str, list[str]] = json.loads(
        docker("run", "--rm", "--user=0", "--network=none", "--entrypoint=python3", image, "-c", PROGRAM)
    )
    return found
