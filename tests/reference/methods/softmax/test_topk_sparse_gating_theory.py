"""Top-K gated mixtures: the model, its distances, and the search for the maximum of the likelihood."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import topk_sparse_gating_theory_numba as kernels
from reference.methods.softmax.topk_sparse_gating_theory import (
    Mixture,
    cell_errors,
    cells,
    density,
    expert_densities,
    gates,
    hellinger,
    log_likelihood,
    never_selected,
    pinned,
    places,
    sample,
    selected_sets,
    selection,
    split_middle,
    truth,
    voronoi_loss,
)
from reference.methods.softmax.topk_sparse_gating_theory_em import (
    SIGMA_RANGE,
    Effort,
    Sums,
    climb,
    em,
    fit,
    gate_step,
    near_truth,
    packed,
    random_starts,
    scoring,
    unpacked,
    update_experts,
)

SEEDS = st.integers(0, 10_000)


def mixture(seed, k=5, selected=2, d=2):
    random = np.random.default_rng(seed)
    return Mixture(random.normal(0, 2, (k, d)), random.normal(0, 1, k), random.normal(0, 1, (k, d)),
                   random.normal(0, 2, k), random.uniform(0.2, 0.6, k), selected)


def samples(n, seed=0, d=1):
    return sample(truth(d), n, np.random.default_rng(seed))


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_gates_sum_to_one_over_exactly_the_selected(seed, selected):
    model, x = mixture(seed, selected=selected), places(2)
    weights = gates(model, x)
    assert np.allclose(weights.sum(axis=1), 1)
    assert ((weights > 0).sum(axis=1) <= selected).all()
    chosen = selection(model, x)
    assert (chosen.sum(axis=1) == selected).all() and not weights[~chosen].any()
    v = x @ model.b1.T
    lowest = np.where(chosen, v, np.inf).min(axis=1)
    assert (np.where(chosen, -np.inf, v).max(axis=1) <= lowest).all()


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 4), st.sampled_from([1, 2]))
def test_kernels_give_the_likelihood_of_the_plain_form_and_of_each_other(seed, selected, d):
    model = mixture(seed, selected=selected, d=d)
    x, y = sample(model, 60, np.random.default_rng(seed))
    theta, expected = packed(model), log_likelihood(model, x, y)
    value, sums = Sums.of(theta, x, y, selected)
    each = np.empty((60, theta.size))
    assert value == pytest.approx(expected)
    assert kernels.scores(theta, x, y, selected, each) == pytest.approx(expected)
    # Fisher's identity: at the current parameters EM's gradient is the likelihood's
    assert np.allclose(each.sum(axis=0).reshape(theta.shape)[:, : d + 1], sums.gradient)
    for kernel in (kernels.sparse_moments, kernels.dense_moments):
        moments = np.empty_like(sums.moments)
        assert kernel(theta, x, y, selected, moments) == pytest.approx(expected)
        assert np.allclose(moments, sums.moments, atol=1e-9)
    assert np.allclose(packed(unpacked(theta, selected)), theta)


def test_every_sample_has_a_responsible_expert():
    x, y = samples(200)
    _, sums = Sums.of(packed(truth()), x, y, 2)
    assert sums.moments[:, 0, 0].sum() == pytest.approx(200)
    assert sums.moments[:, -1, -1].sum() == pytest.approx((y**2).sum())
    assert np.allclose(sums.curvature.reshape(6, 6), sums.curvature.reshape(6, 6).T)
    assert np.abs(sums.gradient.sum(axis=0)).max() < 1e-9  # nothing is gained by a translation
    assert np.abs(sums.curvature.sum(axis=2)).max() < 1e-9


def test_samples_follow_the_density():
    model = truth()
    x, y = samples(20_000)
    assert np.abs(x).max() <= 1
    right = y[x[:, 0] > 0.9]
    grid = np.arange(-6, 6, 0.05)
    expected = density(model, np.array([[0.95]]), grid[None])[0]
    assert right.mean() == pytest.approx((grid * expected).sum() * 0.05, abs=0.1)
    assert (right > 1.5).mean() == pytest.approx(expected[grid > 1.5].sum() * 0.05, abs=0.05)


@settings(max_examples=10, deadline=None)
@given(SEEDS)
def test_em_and_scoring_never_lower_the_likelihood(seed):
    x, y = samples(150, seed)
    start = random_starts(x, y, 4, 2, 1, np.random.default_rng(seed))[0]
    theta, path = em(packed(start), x, y, 2, 8)
    assert (np.diff(path) >= 0).all()
    assert path[0] == pytest.approx(log_likelihood(start, x, y))
    assert log_likelihood(unpacked(theta, 2), x, y) == pytest.approx(path[-1])
    higher, value = scoring(theta, x, y, 2, 10)
    assert value >= path[-1]
    assert log_likelihood(unpacked(higher, 2), x, y) == pytest.approx(value)
    sigma = unpacked(higher, 2).sigma
    assert sigma.min() >= SIGMA_RANGE[0] * (1 - 1e-9) and sigma.max() <= SIGMA_RANGE[1] * (1 + 1e-9)


def test_the_gate_step_is_newtons():
    """Where responsibilities are those of other gates, the step lands on these gates, up to a translation."""
    x, y = samples(4000)
    theta = packed(truth())
    _, sums = Sums.of(theta, x, y, 2)
    step = gate_step(sums, len(x))
    matrix, flat = sums.curvature.reshape(6, 6), sums.gradient.reshape(-1)
    assert np.abs(matrix @ step.reshape(-1) - flat).max() < 1e-2 * np.abs(flat).max()
    assert np.abs(step.sum(axis=0)).max() < 1e-2 * np.abs(step).max()


def test_a_known_number_of_experts_is_found_from_random_starts():
    x, y = samples(2000)
    found = fit(x, y, random_starts(x, y, 3, 2, 10, np.random.default_rng(0)))
    assert found.log_likelihood > log_likelihood(truth(), x, y)
    assert hellinger(found.mixture, truth()) < 0.05
    assert sorted(cells(pinned(found.mixture, truth()), truth())) == [0, 1, 2]
    assert len(found.screened) == 10
    errors = cell_errors(found.mixture, truth())
    assert errors.least_share == 1.0 and max(errors.largest, errors.others) < 1.0


def test_the_likelihood_and_not_the_distance_chooses_among_starts():
    x, y = samples(300)
    bad = random_starts(x, y, 3, 2, 1, np.random.default_rng(1))[0]
    true_start = near_truth(truth(), 3, 2, np.random.default_rng(0))[0]
    short = Effort(screen_steps=1, finalists=1, em_steps=1, scoring_steps=1)
    scores = [fit(x, y, [start], short).log_likelihood for start in (bad, true_start)]
    assert fit(x, y, [bad, true_start], short).log_likelihood == max(scores)


def test_starts_near_a_truth_with_an_expert_too_many_share_its_weight():
    starts = near_truth(truth(), 4, 3, np.random.default_rng(0), noise=0.0)
    assert len(starts) == 3 and all(start.selected == 3 and start.experts == 4 for start in starts)
    for extra, start in enumerate(starts):
        assert np.bincount(cells(start, truth()), minlength=3)[extra] == 2
        assert np.exp(start.b0).sum() == pytest.approx(np.exp(truth().b0).sum())
    with pytest.raises(ValueError, match="one more"):
        near_truth(truth(), 6, 3, np.random.default_rng(0))


@pytest.mark.parametrize("d", [1, 2])
def test_distances_are_zero_for_the_truth_however_it_is_written(d):
    true = truth(d)
    other = true.rows([1, 2, 0]).moved(0.3, -1.0)
    assert voronoi_loss(other, true) < 1e-12 and hellinger(other, true) < 1e-12
    errors = cell_errors(other, true)
    assert max(errors.largest, errors.others) < 1e-12 and errors.least_share == 1.0


def test_hellinger_of_two_gaussians_is_the_closed_form():
    one = Mixture(np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1)), np.array([0.2]), np.array([0.3]), 1)
    two = replace(one, b=np.array([-0.1]), sigma=np.array([0.5]))
    variance = 0.3**2 + 0.5**2
    affinity = np.sqrt(2 * 0.3 * 0.5 / variance) * np.exp(-(0.3**2) / (4 * variance))
    assert hellinger(one, two) == pytest.approx(np.sqrt(1 - affinity), rel=1e-6)
    assert hellinger(one, two) == pytest.approx(hellinger(two, one))


def test_gates_do_not_change_with_a_translation():
    """Of all b1 and all b0 together."""
    x = places(2)
    for model in (mixture(0, selected=3), truth(2)):
        moved = model.moved(np.array([0.7, -1.3]), 2.5)
        assert np.abs(gates(model, x) - gates(moved, x)).max() < 1e-12


def test_the_experts_step_is_weighted_least_squares():
    true = truth()
    x, y = samples(300, 3)
    theta = packed(true)
    after = gates(true, x) * expert_densities(true, x, y[:, None])[:, 0]
    weight = np.sqrt((after / after.sum(axis=1, keepdims=True))[:, 1])
    z = np.column_stack([np.ones(len(x)), x])
    line, square, _, _ = np.linalg.lstsq(weight[:, None] * z, weight * y, rcond=None)
    update_experts(theta, Sums.of(theta, x, y, 2)[1].moments)
    assert np.allclose(theta[1, 2:4], line, atol=1e-6)
    assert np.isclose(np.exp(theta[1, 4]), np.sqrt(square[0] / (weight**2).sum()), atol=1e-6)


def test_fewer_selected_can_still_represent_the_truth():
    """Four experts with two selected, and with K = 1 an expert that is never selected: the very same densities."""
    true, x = truth(), places(1)
    y = np.broadcast_to(np.arange(-5.0, 5.0, 0.05), (len(x), 200))
    assert np.abs(density(split_middle(true), x, y) - density(true, x, y)).max() < 1e-12
    single = replace(true, selected=1)
    assert np.abs(density(never_selected(single), x, y) - density(single, x, y)).max() < 1e-12


def test_regions_of_the_truth():
    assert selected_sets(truth()) == [(0, 1), (1, 2)]
    assert len(selected_sets(truth(2))) == 3
    assert selection(split_middle(truth()), np.array([[-0.3], [0.3]])).tolist() == [
        [True, True, False, False], [False, False, True, True]]
    with pytest.raises(ValueError, match="dimensions"):
        truth(3)


def test_a_mixture_whose_parts_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="shapes"):
        replace(truth(), b0=np.zeros(2))
    with pytest.raises(ValueError, match="selected"):
        replace(truth(), selected=4)


def test_climbing_finds_borders_that_the_gradient_does_not_see():
    true = truth(2)
    x, y = samples(3000, d=2)
    turned = packed(replace(true, b1=true.b1 + np.array([[0.1, -0.1], [0.1, 0.1], [0.0, 0.0]])))
    stuck, value = scoring(turned, x, y, 2, 30)
    freed = climb(stuck, x, y, 2, 200)
    assert log_likelihood(unpacked(freed, 2), x, y) > value + 5
    assert value < log_likelihood(true, x, y) - 5
