"""Which engine a service runs."""

import importlib.util
from typing import Literal

from kit.config.settings import SettingsError
from services.llm.settings import EngineName

Chosen = Literal["vllm", "transformers"]


def choose_engine(setting: EngineName, device: str) -> Chosen:
    """The engine for ENGINE and DEVICE on this machine.

    Raises SettingsError when an engine was named that is not installed, or when there is none at all.
    """
    if setting == "auto":
        setting = "vllm" if has("vllm") and device != "cpu" and has_cuda() else "transformers"
    if not has(setting):
        other = "transformers" if setting == "vllm" else "vllm"
        instead = f" ENGINE={other} is." if has(other) else ""
        raise SettingsError(f"ENGINE={setting} is not installed in this environment.{instead}")
    return setting


def has(package: str) -> bool:
    """Whether `package` can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None


def has_cuda() -> bool:
    """Whether there is an NVIDIA GPU with a driver, without importing an engine."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    try:
        return int(pynvml.nvmlDeviceGetCount()) > 0
    finally:
        pynvml.nvmlShutdown()
