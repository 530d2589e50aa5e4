"""Top-K gated Gaussian mixtures (arXiv 2309.13850): rates of maximum likelihood by experts fitted and selected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.methods.softmax import topk_sparse_gating_theory_numba as kernels
from reference.methods.softmax.topk_sparse_gating_theory import (
    Mixture,
    cell_errors,
    density,
    expert_densities,
    gates,
    hellinger,
    log_likelihood,
    places,
    sample,
    split_middle,
    truth,
    voronoi_loss,
)
from reference.methods.softmax.topk_sparse_gating_theory_em import (
    Sums,
    fit,
    near_truth,
    packed,
    random_starts,
    unpacked,
)
from suites.softmax.topk_sparse_gating_theory.speed import em_problem

suite = Suite(__file__)

STARTS = 10
# experts fitted, and how many of them are selected; the truth has 3 and selects 2
SIZES = {"exact": (3, 2), "wide": (4, 3), "narrow": (4, 2), "narrow_exact_start": (4, 2)}


@suite.trial("rates")
def rates(arm: str, point: Point, seed: int, device: str) -> dict[str, float]:
    """One maximum likelihood fit; all arms see the same samples and, of equal size, the same random starts."""
    true = truth(point["d"])
    x, y = sample(true, point["n"], np.random.default_rng(seed_for("data", seed, point["d"], point["n"])))
    found = fit(x, y, starts(arm, true, x, y, seed))
    errors = cell_errors(found.mixture, true)
    return {
        "hellinger": hellinger(found.mixture, true),
        "voronoi": voronoi_loss(found.mixture, true),
        "largest_cell": errors.largest,
        "other_cells": errors.others,
        "contrast": errors.largest / errors.others,
        "least_share": errors.least_share,
        "gain": found.log_likelihood - log_likelihood(true, x, y),
    }


def starts(arm: str, true: Mixture, x: np.ndarray, y: np.ndarray, seed: int) -> list[Mixture]:
    """Random ones for every arm; near the truth only where the paper's theory promises convergence."""
    experts, selected = SIZES[arm]
    random = np.random.default_rng(seed_for("starts", seed, experts, selected))
    drawn = random_starts(x, y, experts, selected, STARTS, random)
    if arm == "narrow":
        return drawn
    if arm == "narrow_exact_start":
        # in two dimensions no exact representation is known: the doubled truth, of which two are selected, stands in
        return [*drawn, split_middle(true) if true.b1.shape[1] == 1 else true.rows([0, 1, 1, 2])]
    return [*drawn, *near_truth(true, experts, selected, random)]


@suite.speed("em_iteration")
def em_iteration(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Sums over all samples for the M-step of the experts."""
    return em_problem(point["n"], point["k"])


def _mixture(k: int, selected: int, d: int, seed: int) -> Mixture:
    random = np.random.default_rng(seed)
    return Mixture(random.normal(0, 2, (k, d)), random.normal(0, 1, k), random.normal(0, 1, (k, d)),
                   random.normal(0, 2, k), random.uniform(0.2, 0.6, k), selected)


@suite.oracle
def density_integrates_to_one() -> None:
    """Over y, at every x, in one and two dimensions."""
    y = np.arange(-14.0, 14.0, 0.01)
    for d in (1, 2):
        x = places(d)[::7]
        total = density(_mixture(5, 2, d, d), x, np.broadcast_to(y, (len(x), len(y)))).sum(axis=1) * 0.01
        assert np.abs(total - 1).max() < 1e-6, f"the density in {d} dimensions integrates to {total.min()}"


@suite.oracle
def selection_ignores_the_bias() -> None:
    """An expert with a huge bias gets all the weight where it is selected, and none where it is not."""
    mixture = replace(truth(), b0=np.array([50.0, 0.0, 0.0]))  # selected for x < 0 alone
    weights = gates(mixture, np.array([[-0.5], [0.5]]))
    assert weights[0, 0] > 1 - 1e-9 and weights[1, 0] == 0.0


@suite.oracle
def with_all_selected_it_is_the_dense_mixture() -> None:
    """K = k against softmax of all logits, written down anew."""
    mixture, x = _mixture(4, 4, 2, 3), places(2)
    y = np.random.default_rng(0).normal(0, 2, len(x))
    weights = np.exp(x @ mixture.b1.T + mixture.b0)
    residual = y[:, None] - x @ mixture.a.T - mixture.b
    each = np.exp(-(residual**2) / (2 * mixture.sigma**2)) / np.sqrt(2 * np.pi * mixture.sigma**2)
    dense = np.log((weights * each).sum(axis=1) / weights.sum(axis=1)).sum()
    assert abs(log_likelihood(mixture, x, y) - dense) < 1e-9 * abs(dense)
    assert abs(Sums.of(packed(mixture), x, y, 4)[0] - dense) < 1e-9 * abs(dense)


@suite.oracle
def sums_of_the_e_step_are_those_of_the_plain_form() -> None:
    """Responsibilities, their moments, the gates' gradient and curvature, all in NumPy."""
    for d, selected in ((1, 2), (2, 3)):
        mixture = _mixture(5, selected, d, 7)
        x, y = sample(mixture, 400, np.random.default_rng(1))
        prior = gates(mixture, x)
        joint = prior * expert_densities(mixture, x, y[:, None])[:, 0]
        after = joint / joint.sum(axis=1, keepdims=True)
        u = np.column_stack([np.ones(len(x)), x, y])
        z = u[:, :-1]
        value, sums = Sums.of(packed(mixture), x, y, selected)
        jacobian = np.einsum("ni,ij->nij", prior, np.eye(5)) - prior[:, :, None] * prior[:, None, :]
        assert abs(value - log_likelihood(mixture, x, y)) < 1e-8
        assert np.abs(sums.moments - np.einsum("nk,np,nq->kpq", after, u, u)).max() < 1e-8
        assert np.abs(sums.gradient - (after - prior).T @ z).max() < 1e-8
        assert np.abs(sums.curvature - np.einsum("nij,np,nq->ipjq", jacobian, z, z)).max() < 1e-8


@suite.oracle
def scores_are_the_gradient() -> None:
    """Central differences of the log likelihood in every parameter, at a selection that does not change."""
    mixture = truth()
    x, y = sample(mixture, 300, np.random.default_rng(2))
    theta, each = packed(mixture), np.empty((300, 15))
    kernels.scores(theta, x, y, 2, each)
    for place in range(15):
        change = np.zeros(15)
        change[place] = 1e-5
        ends = [log_likelihood(unpacked(theta + sign * change.reshape(3, 5), 2), x, y) for sign in (1, -1)]
        assert abs(each[:, place].sum() - (ends[0] - ends[1]) / 2e-5) < 1e-4, f"the score of parameter {place} is wrong"


@suite.oracle
def hellinger_agrees_with_monte_carlo() -> None:
    """h^2 = 1 - E_p sqrt(q / p) at one x, drawn from p; and the distance of a density to itself is 0."""
    true, other = truth(), replace(truth(), b=np.array([-1.9, 0.3, 2.0]), sigma=np.array([0.4, 0.4, 0.3]))
    assert hellinger(true, true) == 0.0
    random, squares = np.random.default_rng(5), []
    for x in places(1):
        _, y = sample(replace(true, a=0 * true.a, b=true.a @ x + true.b, b1=0 * true.b1, b0=np.log(gates(
            true, x[None])[0] + 1e-300), selected=3), 1500, random)
        p, q = (density(mixture, x[None], y[None])[0] for mixture in (true, other))
        squares.append(1 - np.sqrt(q / p).mean())
    assert abs(np.sqrt(squares).mean() - hellinger(true, other)) < 0.01


@suite.oracle
def voronoi_loss_by_hand() -> None:
    """0 for the truth in another order and translated; one parameter off by 0.1 costs 0.1 exp(b0) of its expert."""
    true = truth()
    assert voronoi_loss(true.rows([2, 0, 1]).moved(1.0, -2.0), true) < 1e-9
    middle = np.exp(0.8)
    for name, place, cost in (("a", 0, 0.1), ("b", 1, 0.1 * middle), ("sigma", 2, 0.1), ("b1", 1, 0.1 * middle)):
        changed = np.array(getattr(true, name))
        changed[place] += 0.1
        assert abs(voronoi_loss(replace(true, **{name: changed}), true) - cost) < 1e-9, name
