"""A driver's libnvidia-ml.so as pynvml calls it: functions of C by their exported names, with pointers and error codes.

What it answers is that of `tests.kit.service.nvml.Driver`; this is the way there, with pynvml's own half of it at work.
"""

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from tests.kit.service.nvml import Driver, Gpu

# Exported under another name than pynvml gives it.
EXPORTED = {
    "nvmlInitWithFlags": "nvmlInit",
    "nvmlDeviceGetCount_v2": "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex_v2": "nvmlDeviceGetHandleByIndex",
}


class Library:
    """In the place of the loaded library. A driver that is older than a function does not have it: `without`."""

    def __init__(self, driver: Driver, *without: str) -> None:
        self._driver = driver
        self._without = without
        self._handles: list[Gpu] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have pynvml call this library."""
        monkeypatch.setattr(pynvml, "nvmlLib", self)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def __getattr__(self, name: str) -> Callable[..., int]:
        """The function that is exported as `name`; AttributeError when there is none, as of a real library."""
        if name in self._without:
            raise AttributeError(name)
        known = EXPORTED.get(name, name)
        answer = self._driver.guarded(known)
        # Then follow the place for the result and, where that is a buffer, its size.
        inputs = len(inspect.signature(getattr(self._driver, known)).parameters)

        def call(*arguments: Any) -> int:
            try:
                result = answer(*(self._read(one) for one in arguments[:inputs]))
            except pynvml.NVMLError as error:
                return int(error.value)
            if result is not None:
                self._write(arguments[inputs], result)
            return 0

        return call

    def _read(self, argument: Any) -> Any:
        if isinstance(argument, pynvml.c_nvmlDevice_t):
            number = ctypes.cast(argument, ctypes.c_void_p).value
            assert number is not None
            return self._handles[number - 1]
        return argument.value

    def _write(self, place: Any, result: Any) -> None:
        target = getattr(place, "_obj", place)
        if isinstance(result, Gpu):
            self._handles.append(result)
            # The address itself means nothing to anybody else.
            ctypes.cast(place, ctypes.POINTER(ctypes.c_void_p))[0] = ctypes.c_void_p(len(self._handles))
        elif isinstance(result, str):
            target.value = result.encode()
        elif isinstance(result, int):
            target.value = result
        else:
            for field, value in vars(result).items():
                setattr(target, field, value)
