"""Selection of the engine: vLLM or transformers."""

import importlib.util
from typing import Literal

from kit.config.settings import SettingsError
from services.llm.settings import EngineName

Chosen = Literal["vllm", "transformers"]


def choose_engine(setting: EngineName, device: str) -> Chosen:
    """Return the engine for ENGINE and DEVICE on this machine. Raises SettingsError if it is not installed."""
    if setting == "auto":
        setting = "vllm" if is_installed("vllm") and device != "cpu" and has_cuda() else "transformers"
    if not is_installed(setting):
        other = "transformers" if setting == "vllm" else "vllm"
        hint = f" Set ENGINE={other}, which is installed." if is_installed(other) else ""
        raise SettingsError(f"ENGINE={setting} is not installed in this environment.{hint}")
    return setting


def is_installed(package: str) -> bool:
    """Return whether `package` can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def has_cuda() -> bool:
    """Return whether there is an NVIDIA GPU with a driver, without importing an engine."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    try:
        return int(pynvml.nvmlDeviceGetCount()) > 0
    finally:
        pynvml.nvmlShutdown()
