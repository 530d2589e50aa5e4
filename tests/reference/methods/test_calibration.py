import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from reference.methods.calibration import aurc, ece, nll, temperature


def draw(seed, n=400, classes=6, scale=3.0, true_temperature=1.0):
    """Logits, and labels that follow softmax(logits / true_temperature)."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=random)
    labels = torch.multinomial(torch.softmax(logits / true_temperature, 1), 1, generator=random)[:, 0]
    return logits, labels


@given(st.integers(0, 50), st.sampled_from([5, 10, 15]))
@settings(max_examples=20, deadline=None)
def test_ece_is_the_sum_over_bins(seed, bins):
    logits, labels = draw(seed)
    p = torch.softmax(logits, 1).double().numpy()
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    expected = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert ece(torch.from_numpy(p), labels, bins) == pytest.approx(expected, abs=1e-9)


def test_ece_of_sure_predictions_is_the_error_and_of_true_probabilities_is_small():
    logits, labels = draw(0)
    sure = torch.nn.functional.one_hot(logits.argmax(1), 6).double()
    error = (logits.argmax(1) != labels).double().mean().item()
    assert ece(sure, labels, 10) == pytest.approx(error)
    logits, labels = draw(1, n=40_000)
    assert ece(torch.softmax(logits, 1), labels, 15) < 0.015
    assert ece(torch.softmax(3 * logits, 1), labels, 15) > 0.05


def test_aurc_by_hand():
    confidence = torch.tensor([0.9, 0.8, 0.7, 0.6])
    p = torch.stack([confidence, 1 - confidence], 1)
    assert aurc(p, torch.tensor([0, 1, 0, 1])) == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert aurc(p, torch.tensor([0, 0, 0, 0])) == 0
    assert aurc(p, torch.tensor([1, 1, 1, 1])) == 1


@given(st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_aurc_ignores_the_order_and_any_rising_map_of_the_confidence(seed):
    logits, labels = draw(seed, n=60)
    p = torch.softmax(logits, 1).double()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    assert aurc(p[order], labels[order]) == pytest.approx(aurc(p, labels), abs=1e-12)
    top = p.argmax(1, keepdim=True)
    squeezed = torch.full_like(p, 0.0).scatter(1, top, 0.5 + p.gather(1, top) / 4)
    assert aurc(squeezed, labels) == pytest.approx(aurc(p, labels), abs=1e-12)


def test_aurc_of_equal_confidences_is_the_mean_over_orders():
    p = torch.tensor([[0.7, 0.3]] * 3, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1])
    assert aurc(p, labels) == pytest.approx(1 / 3)
    random = np.random.default_rng(0)
    drawn = [np.mean(np.cumsum(random.permutation([0, 0, 1])) / [1, 2, 3]) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(1 / 3, abs=0.02)


def test_good_ranking_beats_a_bad_one_at_equal_error():
    labels = torch.tensor([0, 0, 0, 1])
    good = torch.tensor([0.9, 0.8, 0.7, 0.6])
    ranked, turned = (torch.stack([top, 1 - top], 1) for top in (good, good.flip(0)))
    assert aurc(ranked, labels) < aurc(turned, labels)


@given(st.integers(0, 50), st.floats(0.2, 5.0))
@settings(max_examples=20, deadline=None)
def test_temperature_is_the_minimum_that_scipy_finds(seed, true_temperature):
    logits, labels = draw(seed, true_temperature=true_temperature)
    found = minimize_scalar(
        lambda t: nll(logits, labels, float(np.exp(t))), bounds=(-6, 6), method="bounded", options={"xatol": 1e-9}
    )
    assert temperature(logits, labels) == pytest.approx(float(np.exp(found.x)), rel=1e-4)


@given(st.integers(0, 50), st.floats(0.3, 4.0))
@settings(max_examples=10, deadline=None)
def test_temperature_scales_with_the_logits(seed, factor):
    logits, labels = draw(seed)
    logits = logits.double()
    assert temperature(factor * logits, labels) == pytest.approx(factor * temperature(logits, labels), rel=1e-6)


def test_temperature_recovers_the_one_behind_the_labels():
    logits, labels = draw(2, n=40_000, true_temperature=2.5)
    assert temperature(logits, labels) == pytest.approx(2.5, rel=0.05)


def test_labels_that_are_always_or_never_likely_push_to_the_ends():
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert temperature(logits, torch.tensor([0, 1])) < 0.1
    assert temperature(logits, torch.tensor([1, 0])) > 100
