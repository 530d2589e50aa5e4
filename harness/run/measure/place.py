"""Where a cell runs: what proving, timing and weighing an arm ask of a CPU or of a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.declare.card import Measure
from harness.records.record import Cache, Samples
from harness.run.measure import memory
from harness.run.measure.cuda import COLD, WARM, CudaDevice, CudaTimer
from harness.run.measure.rounds import Bench, interleave, run_rounds

_PROOF_LEAD_NS = 500_000


@dataclass(frozen=True)
class Timing:
    """Samples by arm: those that are judged, those of the other cache state, how they were taken, and who cheated."""

    samples: Mapping[str, Samples]
    others: Mapping[str, Samples] = field(default_factory=dict)
    how: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """One call: what it returned, the bytes it needed at its peak beyond what was there, and what is worth noting."""

    returned: Any
    peak_bytes: int
    how: Mapping[str, Any] = field(default_factory=dict)


class Place(Protocol):
    """A device in this process. ``cache`` is the cache state that is judged, None where there is but one."""

    cache: Cache | None

    def lead(self) -> None:
        """Called before buffers are poisoned for a proof: work that does not queue behind it comes too early."""

    def resume(self) -> None:
        """Go on in the stream that is timed, whatever stream an arm has left current."""

    def settle(self) -> None:
        """Block until everything launched is done. Raises what it did wrong."""

    def usable(self) -> bool:
        """Whether this process can go on after an arm's fault."""

    def release(self) -> None:
        """Give back what a failed arm left in caches."""

    def reset_peak(self) -> int:
        """Forget earlier peaks; the bytes in use now."""

    def peak_bytes(self) -> int:
        """The most in use since."""

    def observe(self, work: Callable[[], Any]) -> Observed:
        """Run ``work`` once and weigh it."""

    def time(self, benches: Sequence[Bench], measure: Measure, process: int, seed: int) -> Timing:
        """Interleave ``benches``. Raises :class:`harness.run.measure.rounds.Spoiled`."""


class Host:
    """The CPU: calls are over when they return, memory is what is resident."""

    cache: Cache | None = None

    def lead(self) -> None:
        """Nothing runs ahead."""

    def resume(self) -> None:
        """There are no streams."""

    def settle(self) -> None:
        """Nothing is under way."""

    def usable(self) -> bool:
        """A fault that this process survives leaves it sound."""
        return True

    def release(self) -> None:
        """Nothing is cached."""

    def reset_peak(self) -> int:
        """See :func:`harness.run.measure.memory.reset_peak`."""
        return memory.reset_peak()

    def peak_bytes(self) -> int:
        """See :func:`harness.run.measure.memory.peak_bytes`."""
        return memory.peak_bytes()

    def observe(self, work: Callable[[], Any]) -> Observed:
        """See :class:`Place`."""
        before = self.reset_peak()
        returned = work()
        return Observed(returned, max(0, self.peak_bytes() - before))

    def time(self, benches: Sequence[Bench], measure: Measure, process: int, seed: int) -> Timing:
        """See :class:`Place`."""
        return Timing(run_rounds(benches, measure, process, seed))


class MeasuredDevice(CudaDevice, Protocol):
    """A CUDA device whose memory and graphs are watched too, see :class:`harness.run.measure.gpu.TorchGpu`."""

    def resume(self) -> None:
        """Make the stream of the events current."""

    def usable(self) -> bool:
        """Whether CUDA still answers in this process."""

    def release(self) -> None:
        """Give cached memory back."""

    def reset_peak(self) -> int:
        """Forget earlier peaks; bytes that are allocated now."""

    def peak_bytes(self) -> int:
        """The most that was allocated since."""

    def counting_replays(self) -> Any:
        """A context whose value is a list with the number of graph replays inside it."""


class Cuda:
    """A CUDA device; ``cache`` says whether its cold or its warm times are judged."""

    def __init__(
        self, device: MeasuredDevice, cache: Cache,
        timer: Callable[[CudaDevice], CudaTimer] = CudaTimer,
    ) -> None:
        self.device, self._timer = device, timer
        self.cache: Cache | None = cache

    def lead(self) -> None:
        """Half a millisecond of work in the stream: what runs beside it, in another stream, is poisoned afterwards."""
        self.device.spin(_PROOF_LEAD_NS)

    def resume(self) -> None:
        """The stream of the events."""
        self.device.resume()

    def settle(self) -> None:
        """All streams."""
        self.device.synchronise()

    def usable(self) -> bool:
        """False after a fault that CUDA keeps for the life of the process."""
        return self.device.usable()

    def release(self) -> None:
        """The allocator's cache."""
        self.device.release()

    def reset_peak(self) -> int:
        """Of the device."""
        return self.device.reset_peak()

    def peak_bytes(self) -> int:
        """Of the device."""
        return self.device.peak_bytes()

    def observe(self, work: Callable[[], Any]) -> Observed:
        """See :class:`Place`; notes whether the call replays a CUDA graph."""
        before = self.reset_peak()
        with self.device.counting_replays() as replays:
            returned = work()
        self.settle()
        return Observed(returned, max(0, self.peak_bytes() - before), {"graph": replays[0] > 0})

    def time(self, benches: Sequence[Bench], measure: Measure, process: int, seed: int) -> Timing:
        """See :class:`Place`; each bench in both cache states."""
        timer = self._timer(self.device)
        found = interleave(benches, measure, process, seed, timer)
        names = [bench.name for bench in benches]
        how = {"timer": "CUDA events", "flush_bytes": self.device.flush_bytes}
        return Timing(
            samples=found[self.cache or COLD],
            others=found[WARM if self.cache == COLD else COLD],
            how={name: {**how, "processes": [{"process": process, **timer.how(name)}]} for name in names},
            faults={name: fault for name in names if (fault := timer.fault(name)) is not None},
        )


def place_of(device: str, cache: Cache = "cold") -> Place:
    """The place that a cell's ``device`` names, in the process that will use it."""
    if device == "cpu":
        return Host()
    from harness.run.measure.gpu import TorchGpu

    return Cuda(TorchGpu(device), cache)
