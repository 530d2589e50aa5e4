"""How much memory a call allocates at most, counted from torch's own log of allocations."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_allocated_bytes(call: Callable[[], object]) -> int:
    """The largest sum of bytes that `call` had allocated and not freed on the CPU, by torch; a function of the code.

    Unlike resident memory it does not depend on what an allocator keeps.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        call()
    held, peak = 0, 0
    for event in log.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type().name == "CPU":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def second_call_bytes(function: Callable[[Tensor], object], x: Tensor) -> int:
    """What the second call of `function(x)` allocates at most, when an optimizer already has its state."""
    function(x)
    return peak_allocated_bytes(lambda: function(x))
