"""What a row of the fast paths says: the ratio, the word, the share of the limit, memory, and how an arm ended."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from harness.declare.catalog import Catalog
from harness.declare.suite import Estimate
from harness.judge.evidence import Evidence
from harness.records.record import Samples
from harness.records.store import find_runs
from harness.records.table import COLUMNS
from harness.report.fast_rows import fast_rows, share_of, word_of
from harness.report.speed_view import Limits, SpeedRow

FLOOR = math.log1p(0.0093)


def rows_of(project, records, columns=COLUMNS, **info):
    """The rows of one run that holds ``records``."""
    project.run("20260101-000000-small", records, **info)
    run = find_runs(project.root)[0]
    card = Catalog(project.root).get("fast").card
    latest = Evidence(card, run.records(list(columns)), run.info.constants()).records
    return fast_rows("sums", card.experiments["sums"], latest, run.info, run.machine)


def only(rows, arm="ours"):
    assert len(rows) == 1
    found = rows[0].of(arm)
    assert found is not None
    return found


def speed(time_ns: float, bytes_moved: float, flops: float) -> SpeedRow:
    return SpeedRow({}, "cpu", "ours", 24, (time_ns,) * 3, (1.0,) * 3, 1.0, bytes_moved, flops, 0.0)


def test_the_ratio_is_that_of_the_best_peer_paired_by_round(fast_project):
    make = fast_project.record
    rows = rows_of(fast_project, [make("ours", 1e6), make("slow_peer", 3e6), make("fast_peer", 2e6)])
    ours = only(rows)
    # Rounds differ by a factor of 1.8, the arms inside a round by 1 %: only a paired ratio is this narrow.
    assert ours.best.ratio.point == pytest.approx(2.0, rel=0.01)
    assert 1.95 < ours.best.ratio.low < 2.0 < ours.best.ratio.high < 2.05
    assert ours.best.word == "faster"
    assert {item.peer: round(item.ratio.point) for item in ours.each} == {"slow_peer": 3, "fast_peer": 2}
    assert rows[0].best_peer.arm == "fast_peer"
    assert [item.arm for item in rows[0].ours] == ["ours"]


@pytest.mark.parametrize(
    ("low", "point", "high", "floor", "word"),
    [
        (1.05, 1.10, 1.15, FLOOR, "faster"),
        (0.80, 0.85, 0.90, FLOOR, "slower"),
        (0.995, 1.0, 1.005, FLOOR, "same"),
        (0.98, 1.03, 1.08, FLOOR, "inconclusive"),
        # beyond 1, but not beyond what equal code showed
        (1.002, 1.01, 1.02, FLOOR, "inconclusive"),
        (1.002, 1.01, 1.02, 0.0, "faster"),
        # nothing is known of the noise
        (1.5, 2.0, 2.5, None, "inconclusive"),
        (-math.inf, math.nan, math.inf, FLOOR, "inconclusive"),
    ],
)
def test_the_word_is_about_the_whole_interval_and_the_noise(low, point, high, floor, word):
    assert word_of(Estimate(point, low, high, 24), floor) == word


@pytest.mark.parametrize("canary", [None, {"floor": 0.01, "alarm": True}])
def test_without_a_quiet_canary_a_ratio_gets_no_word(fast_project, canary):
    make = fast_project.record
    ours = only(rows_of(fast_project, [make("ours", 1e6), make("fast_peer", 2e6)], canary=canary))
    assert ours.best.ratio.low > 1.9 and ours.best.word == "inconclusive"


@pytest.mark.parametrize(
    ("bytes_moved", "flops", "share", "binds"),
    [
        (2e9 * 1e-3, 1.0, 0.1, "memory"),  # 2 MB in 1 ms of 20 GB/s
        (1.0, 5e9 * 1e-3, 0.5, "arithmetic"),  # 5 MFLOP in 1 ms of 10 GFLOP/s
        (20e9 * 1e-3, 5e9 * 1e-3, 1.0, "memory"),  # the longer of the two
        (30e9 * 1e-3, 0.0, 1.5, "memory"),  # above the probe: shown as it is
    ],
)
def test_the_share_is_the_least_time_over_the_time(bytes_moved, flops, share, binds):
    limits = Limits({"read": 50e9, "copy": 20e9, "triad": 30e9}, 10e9)
    found = share_of(speed(1e6, bytes_moved, flops), limits)
    assert (found.share, found.binds) == (pytest.approx(share), binds)
    assert found.least_ns == pytest.approx(share * 1e6)


def test_no_ceiling_or_no_cost_is_no_share():
    assert share_of(speed(1e6, 1e6, 1e6), None) is None
    assert share_of(speed(1e6, 0.0, 0.0), Limits({"copy": 1e9}, 1e9)) is None
    assert share_of(speed(1e6, 1e6, 0.0), Limits({"read": 1e9}, 1e9)) is None  # a read stream is no copy
    assert share_of(speed(float("nan"), 1e6, 0.0), Limits({"copy": 1e9}, 1e9)) is None


def test_the_ceiling_is_that_of_the_cells_threads(fast_project):
    make = fast_project.record
    records = [make("ours", 1e6, point={"n": 2**20, "threads": threads}) for threads in (1, "all")]
    one, every = (row.of("ours").share for row in rows_of(fast_project, records))
    assert one.least_ns == pytest.approx(12 * 2**20 / 19e9 * 1e9)
    assert one.least_ns / every.least_ns == pytest.approx(1.7)


def test_the_ceiling_of_a_gpu_is_its_own(fast_project):
    measured = {"copy_bytes_per_s": 2e12, "read_bytes_per_s": 3e12, "flops_per_s": 5e13, "array_bytes": 2**28}
    made = fast_project.record("ours", 1e5, device="cuda:0", point={"n": 2**20})
    ceilings = {"threads": {"1": {"copy_bytes_per_s": 1e9}}, "devices": {"cuda:0": measured}}
    arm = only(rows_of(fast_project, [made], ceilings=ceilings))
    assert arm.share.least_ns == pytest.approx(12 * 2**20 / 2e12 * 1e9) and arm.share.binds == "memory"


def test_an_arm_without_a_result_keeps_its_status_and_reason(fast_project):
    make = fast_project.record
    rows = rows_of(fast_project, [
        make("ours", status="wrong", reason="relative error 0.3", error=0.3),
        make("gpu", status="skipped", reason=None),
        make("slow_peer", 3e6),
        make("fast_peer", status="skipped", reason="not installed"),
    ])
    ours, gpu = rows[0].of("ours"), rows[0].of("gpu")
    assert (ours.speed, ours.best, ours.share) == (None, None, None)
    assert (ours.status, ours.reason, ours.error) == ("wrong", "relative error 0.3", 0.3)
    assert (gpu.status, gpu.reason) == ("skipped", "no reason was recorded")
    assert rows[0].best_peer.arm == "slow_peer"
    assert [(item.arm, item.status) for item in rows[0].peers] == [("slow_peer", "ok"), ("fast_peer", "skipped")]


def test_the_best_peer_is_among_those_that_ran(fast_project):
    make = fast_project.record
    ours = only(rows_of(fast_project, [
        make("ours", 1e6), make("slow_peer", 3e6), make("fast_peer", status="wrong", reason="off"),
    ]))
    assert round(ours.best.ratio.point) == 3 and [item.peer for item in ours.each] == ["slow_peer"]


def test_without_any_peer_there_is_a_reason_and_no_ratio(fast_project):
    rows = rows_of(fast_project, [fast_project.record("ours", 1e6)])
    ours = only(rows)
    assert ours.best.ratio is None and "no peer" in ours.best.refusal and rows[0].best_peer is None
    assert ours.speed.time_ns[1] > 0 and ours.share is not None


def test_rounds_that_only_one_side_has_refuse_the_ratio(fast_project):
    make = fast_project.record
    peer = make("fast_peer", 2e6)
    half = Samples(*(values[:12] for values in vars(peer.samples).values()))
    ours = only(rows_of(fast_project, [make("ours", 1e6), replace(peer, samples=half)]))
    assert ours.best.ratio is None and "lacks 12 of 24" in ours.best.refusal


def test_yardsticks_are_not_ours(fast_project):
    make = fast_project.record
    rows = rows_of(fast_project, [make("ours", 1e6), make("stream", 1e5, error=None), make("fast_peer", 2e6)])
    assert [item.arm for item in rows[0].ours] == ["ours"]


def test_only_the_latest_cell_of_a_point_speaks(fast_project):
    make = fast_project.record
    old = [replace(make(arm, time, started_at=1.0), cell="0ld") for arm, time in (("ours", 9e6), ("fast_peer", 9e6))]
    ours = only(rows_of(fast_project, [*old, make("ours", 1e6), make("fast_peer", 2e6)]))
    assert ours.speed.time_ns[1] < 2e6 and ours.best.ratio.point == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    ("peak", "workspace", "returned", "over"),
    [
        (10 * 2**20, None, 0, False),  # nothing was declared
        (10 * 2**20, 10 * 2**20, 0, False),
        (2 * 2**20, 0.0, 0, False),  # pages of stacks
        (2 * 2**20 + 1, 0.0, 0, True),
        (10 * 2**20, 8 * 2**20, 0, False),  # an allocator's rounding up
        (40 * 2**20, 8 * 2**20, 32 * 2**20, False),  # a fresh result is no workspace
        (40 * 2**20, 8 * 2**20, 0, True),
    ],
)
def test_memory_is_held_against_what_the_arm_declared(fast_project, peak, workspace, returned, over):
    arm = only(rows_of(fast_project, [
        fast_project.record("ours", peak_bytes=peak, workspace_bytes=workspace, returned_bytes=returned)
    ]))
    assert (arm.peak_bytes, arm.workspace_bytes, arm.over_workspace) == (peak, workspace, over)


def test_records_of_before_the_workspace_was_recorded_have_none(fast_project):
    later = ("workspace_bytes", "returned_bytes", "cache")
    columns = [name for name in COLUMNS if name not in later and not name.startswith("other_samples")]
    arm = only(rows_of(fast_project, [fast_project.record("ours", peak_bytes=2**30)], columns=columns))
    assert (arm.workspace_bytes, arm.returned_bytes, arm.over_workspace, arm.cache, arm.other_ns) == (
        None, None, False, "", None)


def test_both_cache_states_of_a_gpu_are_told_apart(fast_project):
    warm = Samples([0, 0, 0], [0, 1, 2], [0, 0, 0], [2, 2, 2], [10, 12, 40])
    made = fast_project.record("ours", 1e6, device="cuda:0", cache="cold", other_samples=warm)
    row = rows_of(fast_project, [made])[0]
    assert (row.device, row.cache, row.of("ours").other_ns, row.of("ours").share) == ("cuda:0", "cold", 6.0, None)


@pytest.mark.parametrize(("size", "device", "fits"), [
    (2**14, "cpu", "L1"), (2**18, "cpu", "L2"), (2**22, "cpu", "LLC"), (2**26, "cpu", ""), (2**14, "cuda:0", ""),
])
def test_a_point_says_which_cache_holds_its_inputs(fast_project, size, device, fits):
    rows = rows_of(fast_project, [fast_project.record("ours", device=device, input_bytes=size)])
    assert rows[0].fits == fits
