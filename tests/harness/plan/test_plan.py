from dataclasses import replace

import pytest

from harness.errors import LitmusError
from harness.plan.machine import Device
from harness.plan.plan import Request, make_plan


def plan_of(root, machine, *selectors, **request):
    return make_plan(root, Request(selectors=selectors, **request), machine)


def test_axes_are_multiplied_and_seeds_vary_slowest(root, machine):
    cells = plan_of(root, machine, "one:quality").cells
    assert [(cell.point["n"], cell.point["mode"], cell.seed) for cell in cells] == [
        (n, mode, seed) for seed in (0, 1) for n in (16, 64) for mode in ("fast", "slow")
    ]
    assert {cell.arms for cell in cells} == {("method", "baseline")}
    assert {cell.card_version for cell in cells} == {3}
    assert len({cell.id for cell in cells}) == 8


def test_a_point_of_a_selector_keeps_only_its_cells(root, machine):
    cells = plan_of(root, machine, "one:quality[n=2**4]", "one:quality[mode=slow,n=64]").cells
    assert {(cell.point["n"], cell.point["mode"]) for cell in cells} == {(16, "fast"), (16, "slow"), (64, "slow")}


def test_seeds_are_the_users_for_trials_and_one_for_speed(root, machine):
    assert len(plan_of(root, machine, "one:quality", seeds=5).cells) == 20
    assert {cell.seed for cell in plan_of(root, machine, "one:pace", seeds=5).cells} == {0}


@pytest.mark.parametrize(
    ("selector", "request_", "reason"),
    [
        ("one:pace", {"profile": "smoke"}, "profile smoke does not run this experiment"),
        ("one:large", {}, "needs 500 GiB, the machine has 24 GiB"),
        ("one:pace", {"devices": ("cuda",)},
         "missing_device: no CUDA device is visible on this machine, so nothing runs on cuda (see: litmus doctor)"),
        ("one:searched", {}, "not tuned: run 'litmus tune one:searched' (arms method, baseline)"),
    ],
)
def test_what_cannot_run_is_skipped_with_its_reason(root, machine, selector, request_, reason):
    plan = plan_of(root, machine, selector, **request_)
    assert not plan.cells
    assert {skip.reason for skip in plan.skipped} == {reason}


def test_too_many_threads_skip_only_their_cells(root, machine):
    plan = plan_of(root, machine, "one:pace")
    assert [cell.point["threads"] for cell in plan.cells] == [1, "all"]
    assert [skip.reason for skip in plan.skipped] == ["needs 64 threads, the machine has 2 cores"]


def test_every_device_is_planned_by_default_and_one_when_named(root, machine):
    machine = replace(machine, devices=(*machine.devices, Device("cuda:0", "Test GPU", 80 * 2**30)))
    assert {cell.device for cell in plan_of(root, machine, "one:pace").cells} == {"cpu", "cuda:0"}
    assert {cell.device for cell in plan_of(root, machine, "one:pace", devices=("cuda",)).cells} == {"cuda:0"}
    assert {cell.device for cell in plan_of(root, machine, "one:quality").cells} == {"cpu"}


def test_tuned_values_are_part_of_the_cell(root, machine):
    (root / "suites/alpha/one/tuned.yaml").write_text(
        "experiments:\n  searched:\n    command: litmus tune one\n    commit: abc\n    code: abc\n    metric: loss\n"
        "    seeds: [1]\n    point: {}\n    arms:\n"
        "      method: {values: {lr: 1}, trials: []}\n      baseline: {values: {lr: 2}, trials: []}\n"
    )
    (cell,) = plan_of(root, machine, "one:searched").cells
    assert cell.tuned == {"method": {"lr": 1}, "baseline": {"lr": 2}}


@pytest.mark.parametrize(
    ("selector", "request_", "key", "expected"),
    [
        ("one:quality[n=17]", {}, "experiments.quality.axes.n", "16, 64"),
        ("one:quality[n=64]", {"profile": "smoke"}, "experiments.quality.axes.n", "one of 16"),
        ("one:quality", {"devices": ("cuda",)}, "--device", "a device"),
        ("one:quality", {"devices": ("gpu",)}, "--device", "'cpu'"),
    ],
)
def test_a_selection_without_cells_is_explained(root, machine, selector, request_, key, expected):
    with pytest.raises(LitmusError) as caught:
        plan_of(root, machine, selector, **request_)
    assert caught.value.key == key
    assert expected in caught.value.expected
    assert caught.value.where and caught.value.next_step
