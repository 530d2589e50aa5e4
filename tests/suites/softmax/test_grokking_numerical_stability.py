import math

import numpy as np
import pandas as pd
import pytest
import torch

from reference.methods.softmax import grokking_numerical_stability as method
from suites.softmax.grokking_numerical_stability import speed
from suites.softmax.grokking_numerical_stability import suite as grokking
from suites.softmax.grokking_numerical_stability.share import prompt_share

CLAIMS = ["perpgrad_fast_generalisation", "sc_onset_ordered_by_precision", "stablemax_avoids_sc", "nlm_alignment"]


def test_every_claim_of_the_paper_is_on_the_card():
    assert grokking.suite.card.claim_ids == CLAIMS


def table(perp, plain, budget=600):
    rows = []
    for seed, pair in enumerate(zip(perp, plain, strict=True)):
        for arm, when in zip(("perp_adamw", "adamw"), pair, strict=True):
            rows.append({"cell": f"c{seed}", "seed": seed, "epochs": budget, "arm": arm, "epochs_to_95": when,
                         "reached": float(when <= budget)})
    return pd.DataFrame(rows)


def share(perp, plain, **changes):
    return prompt_share(table(perp, plain, **changes), 0.95, "perp_adamw", "adamw", 3)


def test_prompt_generalisation_needs_every_seed():
    every = share([100] * 5, [1100] * 5)
    assert (every.point, every.n) == (1.0, 5)
    assert every.low > 0.5
    assert share([100] * 5, [1100] * 4 + [301]).low > 0.5
    late = share([100] * 4 + [900], [1100] * 5, budget=600)
    assert late.low < 0.5 < late.high
    assert share([100] * 5, [299] * 5).high < 0.5


def test_a_budget_that_ends_too_early_decides_nothing():
    found = share([100] * 4 + [250], [1100] * 5)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert "too early in 1 seeds" in found.method


def test_errors_are_told_from_the_largest_entry():
    truth = {"a": [np.array([2.0, -4.0]), np.array([1.0])]}
    assert speed.worst((torch.tensor([2.0, -4.0]), torch.tensor([1.0]), "a"), truth) == 0
    assert speed.worst((torch.tensor([2.0, -4.0]), torch.tensor([1.5]), "a"), truth) == 0.5
    assert speed.worst((torch.tensor([3.0, -4.0]), torch.tensor([1.0]), "a"), truth) == 0.25


def no_projection(w, g):
    return g


def half_projection(w, g):
    return g - 0.5 * (w * g).sum() / (w * w).sum() * w


def other_sign(w, g):
    return -right_perpendicular(w, g)


def without_exp(logits, labels, dtype):
    return method.stablemax_row_losses(logits.to(dtype), labels)


right_perpendicular, right_map = method.perpendicular, method.stable_map
FAULTS = [
    ("perpendicular", no_projection, "perpendicular_and_as_long"),
    ("perpendicular", half_projection, "perpendicular_and_as_long"),
    ("perpendicular", other_sign, "perpendicular_and_as_long"),
    ("stable_map", lambda x: right_map(-x), "losses_are_those_of_their_definitions"),
    ("stable_map", lambda x: torch.where(x >= 0, x + 1, 1 / (1 - 2 * x)), "stablemax_gradient_by_finite_differences"),
    ("row_losses", without_exp, "losses_are_those_of_their_definitions"),
    ("collapse_gap", lambda dtype: -math.log(torch.finfo(dtype).eps), "two_classes_collapse_at_the_closed_form_gap"),
]


@pytest.mark.parametrize(("name", "fault", "oracle"), FAULTS)
def test_planted_faults_are_caught(monkeypatch, name, fault, oracle):
    grokking.suite.oracles[oracle]()
    monkeypatch.setattr(method, name, fault)
    with pytest.raises(AssertionError):
        grokking.suite.oracles[oracle]()
