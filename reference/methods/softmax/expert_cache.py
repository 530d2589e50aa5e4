"""Which calls find their expert in a cache of C slots: LRU, LFU, a fixed set, and the best that hindsight allows.

A trace is one layer's calls in the order in which a decoder makes them, ints in 0..E-1. Every policy starts with the
same contents and answers a call either from the cache (a hit) or by loading the expert, after which it may keep it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Hits = NDArray[np.bool_]

PCIE_BYTES_PER_S = 16e9


def lru(trace: Sequence[int], slots: int, start: Iterable[int] = ()) -> Hits:
    """The expert unused for longest makes room."""
    kept = dict.fromkeys(_first(start, slots))  # from the longest unused to the latest
    hits = np.zeros(len(trace), bool)
    for time, expert in enumerate(trace):
        hits[time] = expert in kept
        if hits[time]:
            del kept[expert]
        elif len(kept) == slots:
            del kept[next(iter(kept))]
        kept[expert] = None
    return hits


def lfu(trace: Sequence[int], slots: int, start: Iterable[int] = ()) -> Hits:
    """The expert with the fewest calls so far makes room, of equals the one unused for longest."""
    kept = set(_first(start, slots))
    calls: Counter[int] = Counter()
    latest = dict.fromkeys(kept, -1)
    hits = np.zeros(len(trace), bool)
    for time, expert in enumerate(trace):
        hits[time] = expert in kept
        if not hits[time] and len(kept) == slots:
            kept.remove(min(kept, key=lambda e: (calls[e], latest[e], e)))
        kept.add(expert)
        calls[expert] += 1
        latest[expert] = time
    return hits


def static_hot(trace: Sequence[int], slots: int, start: Iterable[int] = ()) -> Hits:
    """What is there at the start stays for ever; nothing else is kept."""
    kept = set(_first(start, slots))
    return np.fromiter((expert in kept for expert in trace), bool, len(trace))


def belady(trace: Sequence[int], slots: int, start: Iterable[int] = ()) -> Hits:
    """Clairvoyant: of the cached experts and the one just loaded, the one called again last is let go.

    No policy that starts with the same contents hits more often (Belady 1966, with the choice not to keep).
    """
    following = _next_calls(trace)
    first_call = {expert: time for time, expert in reversed(list(enumerate(trace)))}
    kept = {expert: first_call.get(expert, len(trace)) for expert in _first(start, slots)}
    hits = np.zeros(len(trace), bool)
    for time, expert in enumerate(trace):
        hits[time] = expert in kept
        kept[expert] = following[time]
        if len(kept) > slots:
            del kept[max(kept, key=lambda e: (kept[e], e))]
    return hits


POLICIES = {"lru": lru, "lfu": lfu, "static_hot": static_hot, "belady": belady}


def hottest(trace: Sequence[int], slots: int) -> list[int]:
    """The experts called most often, at most ``slots``, of equals the smaller number first."""
    counts = Counter(trace)
    return sorted(counts, key=lambda expert: (-counts[expert], expert))[:slots]


def rates(policy: str, calls: NDArray[np.int64], slots: int, start: Iterable[int]) -> tuple[float, float]:
    """Hit rates along ``calls`` [sequences, time, k]: of one cache for all, and of one emptied before each sequence."""
    warm = POLICIES[policy](calls.ravel().tolist(), slots, start).mean()
    cold = [POLICIES[policy](sequence.ravel().tolist(), slots).mean() for sequence in calls]
    return float(warm), float(np.mean(cold))


def in_random_order(calls: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """The same tokens [sequences, time, k] shuffled: popularity stays, locality goes."""
    return random.permutation(calls.reshape(-1, calls.shape[2])).reshape(calls.shape)


def stall_us(misses_per_token: float, expert_bytes: int, bytes_per_s: float = PCIE_BYTES_PER_S) -> float:
    """Microseconds that a token waits for its experts when nothing is loaded ahead of time."""
    return misses_per_token * expert_bytes / bytes_per_s * 1e6


def misses_with_prefetch(chosen: NDArray[np.int64], predicted: NDArray[np.int64], slots: int) -> float:
    """Loads per token that LRU waits for when ``predicted`` experts [tokens, k] are loaded ahead of each token.

    Loading ahead takes no time here, which is the most that prefetching can gain; wrong guesses still push others out.
    """
    kept: dict[int, None] = {}

    def touch(expert: int) -> bool:
        hit = expert in kept
        if hit:
            del kept[expert]
        elif len(kept) == slots:
            del kept[next(iter(kept))]
        kept[expert] = None
        return hit

    missed = 0
    for guesses, calls in zip(predicted.tolist(), chosen.tolist(), strict=True):
        for expert in guesses:
            touch(expert)
        missed += sum(not touch(expert) for expert in calls)
    return missed / len(chosen)


def recall(chosen: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Share of the calls [tokens, k] that are among the token's ``predicted`` experts [tokens, any]."""
    return float((chosen[:, :, None] == predicted[:, None, :]).any(-1).mean())


def _first(start: Iterable[int], slots: int) -> list[int]:
    found = list(dict.fromkeys(start))
    if len(found) > slots:
        raise ValueError(f"{len(found)} experts do not fit into {slots} slots")
    return found


def _next_calls(trace: Sequence[int]) -> list[int]:
    """For each call the time of the next one of the same expert, len(trace) where there is none."""
    following, seen = [0] * len(trace), dict[int, int]()
    for time in range(len(trace) - 1, -1, -1):
        following[time] = seen.get(trace[time], len(trace))
        seen[trace[time]] = time
    return following
