"""The suite's own functions at toy sizes, and oracles that notice a broken equation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.run.worker import load_suite
from reference.methods.softmax import expert_cache, moe_dispatch
from reference.methods.softmax import moe_inference_survey as survey

ROOT = Path(__file__).resolve().parents[3]
STEPS = (1, 4, 16, 64, 256)


@pytest.fixture(scope="module")
def suite():
    return load_suite(ROOT, "softmax/moe_inference_survey")


def records(per_token_us):
    rows = [
        {"cell": "c", "process": process, "unit": f"{process}/{r}", "arm": f"b{step}", "time": 256e3 * us * (1 + r / 9)}
        for process in range(3) for r in range(4) for step, us in zip(STEPS, per_token_us, strict=True)
    ]
    return pd.DataFrame(rows)


def test_r2_is_one_on_the_model_itself_and_negative_against_it(suite):
    per_token = [moe_dispatch.expected_distinct(step, 2, 16) / step for step in STEPS]
    estimate = suite.estimates["byte_model_r2"]
    exact = estimate(records([3 + 50 * share for share in per_token]), 0.95)
    assert exact.point == pytest.approx(1) and exact.low == pytest.approx(1) and exact.n == 12
    assert estimate(records([200 - 50 * share for share in per_token]), 0.95).point == pytest.approx(-1)
    assert estimate(records([1, 50, 2, 60, 3]), 0.95).point < 0.5


def test_the_byte_model_counts_a_steps_distinct_experts(suite):
    problem = suite.speeds["decode"]({"hidden": 32}, np.random.default_rng(0), "cpu")
    expert = 4 * 2 * 16 * 32
    assert problem.arms["b256"].bytes_moved == pytest.approx(16 * expert + 8 * 256 * 16)
    assert problem.arms["b1"].bytes_moved == pytest.approx(256 * 2 * expert + 8 * 256 * 16)


def gates_over_all(logits, k):
    """The gates as they are before they are renormalised."""
    chosen = logits.topk(k).indices
    return chosen, logits.softmax(-1).gather(-1, chosen)


def without_the_gates(x, experts, chosen, gates):
    return moe_dispatch.looped(x, experts, chosen, torch.ones_like(gates))


def in_token_order(x, experts, chosen, gates):
    """Calls sorted by expert but added up as if they had stayed where they were."""
    calls = chosen.flatten()
    order = calls.argsort(stable=True)
    ends = torch.bincount(calls, minlength=experts.count).cumsum(0).tolist()
    out = moe_dispatch._segments(x[order // 2], experts, ends)
    return (out.view(len(x), 2, -1) * gates[..., None]).sum(1)


@pytest.mark.parametrize(("module", "name", "fault", "oracle"), [
    (survey, "top_k_gates", gates_over_all, "changed_gates_keep_what_they_should"),
    (moe_dispatch, "masked", without_the_gates, "all_dispatches_agree"),
    (moe_dispatch, "grouped", in_token_order, "all_dispatches_agree"),
    (expert_cache, "_next_calls", lambda trace: [-time for time in range(len(trace))], "belady_is_never_beaten"),
])
def test_planted_faults_are_caught(suite, monkeypatch, module, name, fault, oracle):
    suite.oracles[oracle]()
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(AssertionError):
        suite.oracles[oracle]()
