"""One CUDA device by torch and NVML: the calls themselves, no decisions. Only a worker of a CUDA cell makes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from harness.plan.machine import this_machine
from harness.run.measure.cuda import Clocks

# Reasons that mean that the clock is below what the load would get: not idleness, and not a clock that somebody set.
_HELD_BACK = {
    "HwSlowdown": "hardware slowdown",
    "HwThermalSlowdown": "hardware thermal slowdown",
    "HwPowerBrakeSlowdown": "hardware power brake",
    "SwThermalSlowdown": "software thermal slowdown",
    "SwPowerCap": "software power cap",
}
_PROBE_CYCLES = 1_000_000
_WAKE_CYCLES = 100_000_000  # long enough for an idle clock to rise


def unusable(device: str) -> str | None:
    """Why torch cannot use ``device`` in this process, None where it can."""
    import torch

    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build without CUDA"
        return f"torch {torch.__version__} {built} and sees no CUDA device here (see: litmus doctor)"
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        return f"torch sees {torch.cuda.device_count()} CUDA devices here, none is {device}"
    return None


def claim(device: str, memory_bytes: int | None) -> None:
    """Make ``device`` the current one, and let torch allocate at most ``memory_bytes`` of it (None: all there is)."""
    import torch

    index = torch.device(device).index or 0
    torch.cuda.set_device(index)
    if memory_bytes is not None:
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes / total), index)


def alive(device: str) -> bool:
    """Whether CUDA still answers here: False after a fault that stays for the life of the process."""
    import torch

    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


class TorchGpu:
    """See :class:`harness.run.measure.cuda.CudaDevice`; all work and all events on the stream that is current now.

    Peaks are of torch's allocator: what a library takes from CUDA by itself is not seen.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self.device = torch.device(device)
        self._cuda = torch.cuda
        torch.cuda.set_device(self.device)
        self._stream = torch.cuda.current_stream(self.device)
        self.l2_bytes = int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    @property
    def flush_bytes(self) -> int:
        """Twice the L2 cache, and at least 64 MiB."""
        return max(2 * self.l2_bytes, 2**26)

    @cached_property
    def _scratch(self) -> Any:
        return self._torch.empty(self.flush_bytes, dtype=self._torch.uint8, device=self.device)

    @cached_property
    def _cycles_per_ns(self) -> float:
        """Measured once, with the clock up; a lead that is too short for it shows as late pairs and is lengthened."""
        self._cuda._sleep(_WAKE_CYCLES)
        start = self.event()
        self._cuda._sleep(_PROBE_CYCLES)
        end = self.event()
        self.synchronise()
        return float(_PROBE_CYCLES / self.between_ns(start, end))

    def resume(self) -> None:
        """Make the stream current again: an arm may have left another."""
        self._cuda.set_stream(self._stream)

    def spin(self, duration_ns: int) -> None:
        """A kernel that counts cycles."""
        self.resume()
        self._cuda._sleep(max(1, round(duration_ns * self._cycles_per_ns)))

    def flush(self) -> None:
        """Zeros into a buffer of :attr:`flush_bytes`."""
        self._scratch.zero_()

    def event(self) -> Any:
        """A timing event, recorded."""
        event = self._cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def passed(self, event: Any) -> bool:
        """By asking, without waiting."""
        return bool(event.query())

    def wait(self, event: Any) -> None:
        """For the event alone."""
        event.synchronize()

    def between_ns(self, start: Any, end: Any) -> float:
        """CUDA tells it in float32 milliseconds, in steps of about half a microsecond."""
        return float(start.elapsed_time(end)) * 1e6

    def synchronise(self) -> None:
        """All streams of the device."""
        self._cuda.synchronize(self.device)

    def usable(self) -> bool:
        """False after a fault that CUDA keeps for the life of the process, such as an illegal address."""
        return alive(str(self.device))

    def reset_peak(self) -> int:
        """Forget earlier peaks; bytes that are allocated now."""
        self.synchronise()
        self._cuda.reset_peak_memory_stats(self.device)
        return int(self._cuda.memory_allocated(self.device))

    def peak_bytes(self) -> int:
        """The most that was allocated since."""
        return int(self._cuda.max_memory_allocated(self.device))

    def release(self) -> None:
        """Give cached memory back, so that an arm that took all of it leaves the next one as much."""
        self._cuda.empty_cache()

    @contextmanager
    def counting_replays(self) -> Iterator[list[int]]:
        """Inside, the list's only number counts the replays of torch's CUDA graphs."""
        graph, count = self._cuda.CUDAGraph, [0]
        replay = graph.replay

        def counted(self: Any) -> Any:
            count[0] += 1
            return replay(self)

        graph.replay = counted
        try:
            yield count
        finally:
            graph.replay = replay

    @cached_property
    def _nvml(self) -> tuple[Any, Any] | None:
        """(pynvml, this device's handle; a slice's whole GPU), None where the driver does not show it."""
        known = this_machine().device(f"cuda:{self.device.index or 0}")
        if known is None or known.uuid is None:
            return None
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(known.uuid)
        if known.uuid.startswith("MIG-"):
            handle = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        return pynvml, handle

    def clocks(self) -> Clocks:
        """By NVML; all None where it cannot be asked."""
        if self._nvml is None:
            return Clocks()
        nvml, handle = self._nvml

        def ask(name: str, *more: Any) -> Any:
            try:
                return getattr(nvml, name)(handle, *more)
            except nvml.NVMLError:  # this GPU, or this user, may not
                return None

        power_mw = ask("nvmlDeviceGetPowerUsage")
        return Clocks(
            sm_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            temperature_c=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power_mw is None else power_mw / 1000,
            held_back=held_back(nvml, ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0),
        )


def held_back(nvml: Any, bits: int) -> tuple[str, ...]:
    """What NVML's clock event reasons say about heat, power and hardware, in words."""
    return tuple(words for name, words in _HELD_BACK.items() if bits & _bit(nvml, name))


def _bit(nvml: Any, name: str) -> int:
    """The flag of a reason under its newer or its older name."""
    for prefix in ("nvmlClocksEventReason", "nvmlClocksThrottleReason"):
        if hasattr(nvml, prefix + name):
            return int(getattr(nvml, prefix + name))
    return 0
