"""NVIDIA's binding without a GPU: its answers are made up, and fail as they are told to."""

from types import ModuleType, SimpleNamespace
from typing import Any


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class Driver:
    """What NVML answers, and how often it was opened."""

    def __init__(self) -> None:
        self.failing: dict[str, int] = {}
        """Function -> error code (nvml.h)."""
        self.count = 1
        self.ailing: int | None = None
        """The GPU that fails; `None`: all."""
        self.opened = 0
        self.closed = 0

    def binding(self) -> ModuleType:
        answers: dict[str, Any] = {
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80, used=30),
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=55),
            "nvmlDeviceGetPowerUsage": 250_500,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=7, usedGpuMemory=20),
                SimpleNamespace(pid=8, usedGpuMemory=None),
            ],
            "nvmlDeviceGetGraphicsRunningProcesses": [SimpleNamespace(pid=7, usedGpuMemory=20)],
        }
        module = ModuleType("pynvml")
        errors = {
            "NVML_ERROR_NOT_SUPPORTED": 3,
            "NVML_ERROR_NO_PERMISSION": 4,
            "NVML_ERROR_DRIVER_NOT_LOADED": 9,
            "NVML_ERROR_LIBRARY_NOT_FOUND": 12,
            "NVML_ERROR_FUNCTION_NOT_FOUND": 13,
        }
        vars(module).update(errors, NVMLError=NVMLError, NVML_TEMPERATURE_GPU=0)
        for name, answer in answers.items():
            setattr(module, name, lambda gpu, *_, name=name, answer=answer: self._answer(name, answer, gpu))
        vars(module).update(
            nvmlInit=self._open,
            nvmlShutdown=self._close,
            nvmlDeviceGetCount=lambda: self._answer("nvmlDeviceGetCount", self.count),
            nvmlDeviceGetHandleByIndex=lambda gpu: self._answer("nvmlDeviceGetHandleByIndex", gpu, gpu),
        )
        return module

    def _answer(self, name: str, answer: Any, gpu: int | None = None) -> Any:
        if name in self.failing and self.ailing in (None, gpu):
            raise NVMLError(self.failing[name])
        return answer

    def _open(self) -> None:
        self.opened += 1
        self._answer("nvmlInit", None)

    def _close(self) -> None:
        self.closed += 1
