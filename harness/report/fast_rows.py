"""One row of a fast path: at a point on a device, each arm of ours against its best peer and the machine's limit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.declare.card import Experiment
from harness.declare.estimate_spec import Ratio
from harness.declare.suite import Estimate
from harness.judge.decide import Canary
from harness.judge.estimates import compute
from harness.judge.sample import NotEstimable
from harness.judge.tidy import tidy
from harness.records.allowance import allowed_bytes
from harness.records.store import RunInfo
from harness.report.speed_view import Limits, SpeedRow, limits_for, speed_rows

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.95
COMPARED = ("faster", "slower", "same", "inconclusive")


@dataclass(frozen=True)
class Against:
    """Time of ``peer`` (of the best peer where it is empty) over ours, above 1 where ours is faster.

    ``word`` is one of :data:`COMPARED`; ``refusal`` says why there is no ratio.
    """

    peer: str
    ratio: Estimate | None
    word: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Share:
    """``share`` is the least time that the machine allows over the time taken.

    ``binds`` names the ceiling that sets the least time: ``memory`` or ``arithmetic``.
    """

    share: float
    least_ns: float
    binds: str


@dataclass(frozen=True)
class ArmResult:
    """What one arm left at one point: ``speed`` is None unless it ended ``ok``, and ``reason`` then says why.

    Times in ns, sizes in bytes. ``cache`` is the state of a GPU's L2 in the times judged, ``cold`` or ``warm``, empty
    on a CPU; ``other_ns`` is the median time in the other state. ``best`` and ``each`` are None and empty for a peer.
    """

    arm: str
    status: str
    reason: str
    speed: SpeedRow | None
    error: float | None
    tolerance: float | None
    peak_bytes: float | None
    workspace_bytes: float | None
    returned_bytes: float | None
    first_call_ns: float | None
    cache: str
    other_ns: float | None
    share: Share | None = None
    best: Against | None = None
    each: tuple[Against, ...] = ()

    @property
    def over_workspace(self) -> bool:
        """Whether the arm took clearly more memory than it declared and returned; False where it declared nothing."""
        if self.peak_bytes is None or self.workspace_bytes is None:
            return False
        return self.peak_bytes > allowed_bytes(self.workspace_bytes, self.returned_bytes or 0.0)


@dataclass(frozen=True)
class FastRow:
    """One point on one device of one machine. ``fits`` names the smallest cache that holds the inputs, if one does."""

    point: Mapping[str, Any]
    device: str
    machine: str
    input_bytes: float
    fits: str
    ours: tuple[ArmResult, ...]
    peers: tuple[ArmResult, ...]

    @property
    def cache(self) -> str:
        """The state of a GPU's L2 in the times judged, empty on a CPU."""
        return next((item.cache for item in (*self.ours, *self.peers) if item.cache), "")

    @property
    def best_peer(self) -> ArmResult | None:
        """The peer with the least median time, None where none has a result."""
        timed = [peer for peer in self.peers if peer.speed is not None]
        return min(timed, key=_median_ns, default=None)

    def of(self, arm: str) -> ArmResult | None:
        """The result of one of our arms; None where it left no record."""
        return next((item for item in self.ours if item.arm == arm), None)


def fast_rows(name: str, experiment: Experiment, records: pd.DataFrame, info: RunInfo, machine: str) -> list[FastRow]:
    """The rows of one experiment in one run, in the order of the records: each question's latest cell, each arm once.

    ``records`` are those of one suite with their samples, see :attr:`harness.judge.evidence.Evidence.records`.
    """
    peers = experiment.fast_path.peers if experiment.fast_path else []
    own = records.loc[(records["experiment"] == name).to_numpy()]
    table = tidy(own, name, experiment)
    speeds = {(_key(row.point), row.device, row.arm): row for row in speed_rows(table, own)}
    yardsticks = {row.arm for row in speeds.values() if not row.checked}
    floor = _floor(info)
    made = []
    for (text, device), group in own.groupby(["point", "device"], sort=False, observed=True):
        point = json.loads(str(text))
        limits = limits_for(info.ceilings, point.get("threads"), str(device))
        here = table[table["cell"].astype(str).isin(set(group["cell"].astype(str)))]
        found = {
            str(arm): _result(part, speeds.get((_key(point), str(device), str(arm))), limits)
            for arm, part in group.groupby("arm", sort=False, observed=True)
        }
        rivals = [found[peer] for peer in peers if peer in found]
        ours = [found[arm] for arm in experiment.arms if arm in found and arm not in (*peers, *yardsticks)]
        timed = [peer.arm for peer in rivals if peer.speed is not None]
        size = float(group["input_bytes"].max())
        made.append(FastRow(
            point=point, device=str(device), machine=machine, input_bytes=size, fits=_fits(size, str(device), info),
            ours=tuple(_compared(item, timed, here, experiment, floor) for item in ours), peers=tuple(rivals),
        ))
    return made


def word_of(ratio: Estimate, floor: float | None) -> str:
    """Whether the whole interval lies above (``faster``), below (``slower``) or inside (``same``) the zone of noise.

    ``floor`` is the |log ratio| that equal code showed in the run; None, where nothing is known of it, decides nothing.
    """
    if floor is None or not math.isfinite(ratio.point):
        return "inconclusive"
    low, high = math.exp(-floor), math.exp(floor)
    if ratio.low > high:
        return "faster"
    if ratio.high < low:
        return "slower"
    return "same" if low <= ratio.low and ratio.high <= high else "inconclusive"


def share_of(speed: SpeedRow, limits: Limits | None) -> Share | None:
    """The arm's bytes over the copy bandwidth, or its FLOPs over the arithmetic ceiling, whichever takes longer.

    Over the median time; None where the arm has no cost or the machine no such ceiling.
    """
    if limits is None or not speed.time_ns[1] > 0:
        return None
    parts = []
    copy = limits.streams.get("copy")
    if copy and speed.bytes_moved:
        parts.append((speed.bytes_moved / copy * 1e9, "memory"))
    if limits.flops_per_s and speed.flops:
        parts.append((speed.flops / limits.flops_per_s * 1e9, "arithmetic"))
    if not parts:
        return None
    least_ns, binds = max(parts)
    return Share(least_ns / speed.time_ns[1], least_ns, binds)


def _compared(
    item: ArmResult, peers: Sequence[str], table: pd.DataFrame, experiment: Experiment, floor: float | None
) -> ArmResult:
    """``item`` with its ratios to the best of ``peers`` and to each of them."""
    if item.speed is None:
        return item
    if not peers:
        return _with(item, best=Against("", None, refusal="no peer has a result here"))
    each = tuple(_against(peer, peer, item.arm, table, experiment, floor) for peer in peers)
    if len(peers) == 1:
        return _with(item, best=each[0], each=each)
    best = _against("", f"best({', '.join(peers)})", item.arm, table, experiment, floor)
    return _with(item, best=best, each=each)


def _against(
    peer: str, of: str, arm: str, table: pd.DataFrame, experiment: Experiment, floor: float | None
) -> Against:
    try:
        ratio = compute(Ratio(ratio="time", of=of, to=arm), table, experiment, LEVEL)
    except NotEstimable as refusal:
        return Against(peer, None, refusal=str(refusal))
    return Against(peer, ratio, word_of(ratio, floor))


def _with(item: ArmResult, **changes: Any) -> ArmResult:
    return ArmResult(**{**vars(item), **changes})


def _result(records: pd.DataFrame, speed: SpeedRow | None, limits: Limits | None) -> ArmResult:
    """One arm's records at one point as one result: the first that is not ok tells how it ended."""
    bad = records.loc[(records["status"] != "ok").to_numpy()]
    first = (bad if len(bad) else records).iloc[0]
    ended_well = not len(bad) and speed is not None
    return ArmResult(
        arm=str(first["arm"]), status=str(first["status"]),
        reason=first["reason"] if isinstance(first["reason"], str) else "" if ended_well else "no reason was recorded",
        speed=speed if ended_well else None, share=share_of(speed, limits) if speed and ended_well else None,
        error=_number(records, "error"), tolerance=_number(records, "tolerance"),
        peak_bytes=_number(records, "peak_bytes"), workspace_bytes=_number(records, "workspace_bytes"),
        returned_bytes=_number(records, "returned_bytes"), first_call_ns=_number(records, "first_call_ns"),
        cache=first["cache"] if isinstance(first.get("cache"), str) else "", other_ns=_other_ns(records),
    )


def _number(records: pd.DataFrame, column: str) -> float | None:
    """The largest value of a column; None where the records, or all of them, have none."""
    if column not in records.columns:
        return None
    found = float(records[column].astype(float).max())
    return found if math.isfinite(found) else None


def _other_ns(records: pd.DataFrame) -> float | None:
    """The median time of a call in the cache state that is not judged; None where it was not measured."""
    columns = ("other_samples_elapsed_ns", "other_samples_calls")
    if any(column not in records.columns for column in columns):
        return None
    elapsed, calls = (np.concatenate([np.asarray(items, float) for items in records[name]]) for name in columns)
    return float(np.median(elapsed / calls)) if len(elapsed) and len(elapsed) == len(calls) else None


def _floor(info: RunInfo) -> float | None:
    canary = Canary.read(info.canary)
    return None if canary.fault else canary.floor


def _fits(size: float, device: str, info: RunInfo) -> str:
    caches = (info.machine.get("caches") or {}) if device == "cpu" else {}
    names = (("l1", "L1"), ("l2", "L2"), ("llc", "LLC"))
    return next((word for name, word in names if 0 < size < (caches.get(name) or 0)), "")


def _median_ns(result: ArmResult) -> float:
    return result.speed.time_ns[1] if result.speed else math.inf


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps(dict(point), sort_keys=True)
