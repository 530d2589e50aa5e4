"""ci/aa.py: how a pair of arms becomes one difference, and that its suite is a valid one."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.declare.card import load_card
from harness.records.record import Samples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def aa():
    spec = importlib.util.spec_from_file_location("ci_aa", ROOT / "ci" / "aa.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(arm: str, times: list[int], status: str = "ok"):
    samples = Samples(process=[0] * len(times), round=list(range(len(times))), position=[0] * len(times),
                      calls=[10] * len(times), elapsed_ns=[10 * time for time in times])
    return SimpleNamespace(arm=arm, status=status, reason="because", samples=samples)


def test_difference_is_the_median_of_paired_ratios(aa):
    a, b = record("a", [100, 220, 303]), record("b", [100, 200, 300])
    assert aa.difference([b, a]) == pytest.approx(0.01)


def test_an_arm_that_is_not_ok_ends_it(aa):
    with pytest.raises(ValueError, match="arm b is wrong: because"):
        aa.difference([record("a", [1]), record("b", [1], "wrong")])


def test_its_suite_times_the_same_kernel_twice(aa, tmp_path):
    aa.write_suite(tmp_path, 4096)
    experiment = load_card(tmp_path / "suites" / "ci" / "aa" / "card.yaml").experiments["aa"]
    assert experiment.axes["n"] == [4096] and len(experiment.axes["repeat"]) == 20 and experiment.arms == ["a", "b"]
    assert (tmp_path / "suites" / "softmax" / "two_pass_softmax" / "arms.py").is_file()


def test_a_size_that_is_no_number_is_refused(aa, capsys):
    assert aa.main(["many"]) == 2
    assert "not arithmetic" in capsys.readouterr().err
