import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from reference.methods.softmax import lame_test_time_adaptation as lame
from reference.methods.softmax import lame_test_time_adaptation_streams as streams
from reference.methods.softmax.lame_test_time_adaptation_numba import refine_steps
from reference.testbeds.glyph_nets import residual_net

sizes = st.tuples(st.integers(3, 30), st.integers(2, 8), st.integers(0, 10_000))


def case(n, classes, seed, sharpness=2.0):
    random = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn((n, classes), generator=random, dtype=torch.float64)
    return logits.softmax(1), torch.randn((n, 4), generator=random, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from(["knn", "rbf", "linear"]), st.booleans())
def test_rows_stay_on_the_simplex_and_one_step_is_the_equation(size, kind, symmetric):
    Q, features = case(*size)
    W = lame.affinity(features, kind, 3, symmetric)
    Z = lame.refine(Q, W).probabilities
    assert torch.allclose(Z.sum(1), torch.ones(len(Z), dtype=Z.dtype))
    assert (Z >= 0).all()
    expected = Q * torch.exp(W @ Q)
    assert torch.allclose(lame.refine(Q, W, 0.0, 1).probabilities, expected / expected.sum(1, keepdim=True), atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(sizes, st.floats(0.1, 20.0))
def test_objective_never_rises_for_positive_affinities(size, strength):
    Q, features = case(*size)
    root = torch.randn((len(Q), 3), generator=torch.Generator().manual_seed(size[2]), dtype=torch.float64)
    for W in (lame.affinity(features, "rbf", 2), root @ root.mT):
        values = [lame.objective(lame.refine(Q, strength * W, 0.0, steps).probabilities, Q, strength * W).item()
                  for steps in range(10)]
        assert all(after <= before + 1e-9 * max(1, abs(before)) for before, after in itertools.pairwise(values))


def test_the_monitored_energy_is_not_monotone():
    rose = 0
    for seed in range(20):
        Q, features = case(30, 4, seed)
        energies = lame.refine(Q, 3 * lame.affinity(features, "linear"), 0.0, 15).energies
        rose += any(after > before + 1e-6 for before, after in itertools.pairwise(energies))
    assert rose > 0


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_lists_of_neighbours_are_the_matrix(size):
    Q, features = case(*size)
    W = lame.affinity(features, "knn", 3)
    lists = lame.neighbours(nn.functional.normalize(features, dim=1), 3)
    assert torch.equal(lists.sort(1).values, W.nonzero()[:, 1].view(len(Q), -1))
    assert torch.allclose(lame.product(lists, Q), W @ Q)
    dense, sparse = lame.refine(Q, W), lame.refine(Q, lists)
    assert dense.steps == sparse.steps
    assert torch.allclose(dense.probabilities, sparse.probabilities)


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_compiled_steps_agree(size):
    Q, features = case(*size, sharpness=6.0)
    lists = lame.neighbours(features, 3)
    expected = lame.refine(Q, lists, 0.0, 7).probabilities
    assert np.abs(refine_steps(Q.float().numpy(), lists.numpy(), 7) - expected.numpy()).max() < 2e-5


@settings(max_examples=30, deadline=None)
@given(sizes, st.sampled_from(["knn", "rbf", "linear"]))
def test_permuted_batches_give_permuted_results(size, kind):
    Q, features = case(*size)
    order = torch.randperm(len(Q), generator=torch.Generator().manual_seed(5))
    Z = lame.refine(Q, lame.affinity(features, kind, 3)).probabilities
    permuted = lame.refine(Q[order], lame.affinity(features[order], kind, 3)).probabilities
    assert torch.allclose(Z[order], permuted, atol=1e-7)


def test_affinities_by_hand():
    features = torch.tensor([[2.0, 0.0], [3.0, 0.1], [0.0, 1.0], [0.1, 5.0]], dtype=torch.float64)
    knn = lame.affinity(features, "knn", 1)
    assert knn.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    f = features / features.norm(dim=1, keepdim=True)
    assert torch.allclose(lame.affinity(features, "linear"), f @ f.T)
    gaps = (f[:, None] - f[None]).norm(dim=2)
    width = gaps.sort(1).values[:, 2].mean()
    assert torch.allclose(lame.affinity(features, "rbf", 2), torch.exp(-(gaps**2) / (2 * width**2)), atol=1e-6)
    lone = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert torch.equal(lame.affinity(lone, "knn", 1, symmetric=True), lame.affinity(lone, "knn", 1, symmetric=True).mT)
    assert lame.neighbours(lone, 9).shape == (3, 2)
    with pytest.raises(ValueError, match="knn, rbf or linear"):
        lame.affinity(features, "cosine")


def test_without_affinity_or_agreement_to_gain_nothing_changes():
    Q, _ = case(10, 4, 0)
    found = lame.refine(Q, torch.zeros(10, 10, dtype=Q.dtype))
    assert torch.allclose(found.probabilities, Q, atol=1e-8)
    assert found.steps == 2
    same = Q[:1].expand(10, -1)
    assert lame.refine(same, torch.ones(10, 10, dtype=Q.dtype)).probabilities.argmax(1).unique().numel() == 1


def test_it_stops_at_the_limit_or_when_the_energy_does_not_change():
    Q, features = case(40, 5, 1)
    W = lame.affinity(features, "knn", 5)
    assert lame.refine(Q, W, 0.0, 17).steps == 17
    found = lame.refine(Q, W)
    assert 2 < found.steps < lame.MAX_STEPS
    assert abs(found.energies[-1] - found.energies[-2]) <= 1e-8 * abs(found.energies[-2])


@pytest.mark.parametrize("w", [0.3, 0.9, 1.5])
def test_two_images_reach_a_minimum_of_the_objective(w):
    Q = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
    W = torch.tensor([[0.0, w], [w, 0.0]], dtype=torch.float64)

    def value(p):
        return lame.objective(torch.tensor(np.stack([p, 1 - p], 1)), Q, W).item()

    found = minimize(value, [0.7, 0.5], bounds=[(1e-9, 1 - 1e-9)] * 2, tol=1e-14)
    assert np.abs(lame.refine(Q, W, 0.0, 500).probabilities[:, 0].numpy() - found.x).max() < 1e-5


def test_the_adapter_keeps_the_model_and_remembers_no_batch():
    model = residual_net(0, classes=5, width=4)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(24, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for kind in ("knn", "rbf", "linear"):
        adapter = lame.LAME(model, kind, k=3)
        first = adapter(x)
        adapter(x.flip(0) + 1)
        assert torch.equal(adapter(x), first)
        assert torch.allclose(first.sum(1), torch.ones(24))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert torch.allclose(lame.LAME(model, symmetric=True)(x).sum(1), torch.ones(24))


def test_images_that_agree_in_their_features_pull_a_mistake_over():
    logits = torch.tensor([[2.0, 0.0]] * 5 + [[-0.2, 0.2]] + [[0.0, 2.0]] * 5, dtype=torch.float64)
    features = torch.tensor([[1.0, 0.01 * i] for i in range(6)] + [[0.01 * i, 1.0] for i in range(5)]).double()
    Z = lame.refine(logits.softmax(1), lame.affinity(features, "knn", 3)).probabilities
    assert Z.argmax(1).tolist() == [0] * 6 + [1] * 5


def test_streams_hold_the_pool_in_the_scenarios_order():
    config = {"images": 240, "prior": "zipf", "side": 16, "seed": 3}
    x, y, digest = streams.pool(config)
    assert x.shape == (240, 1, 16, 16)
    assert digest == streams.pool(config)[2] != streams.pool({**config, "seed": 4})[2]
    counts = y.bincount(minlength=60).sort(descending=True).values
    assert counts[0] == pytest.approx(240 / sum(1 / k for k in range(1, 61)), abs=1)
    bursts = streams.Scenario("clean", "bursts", "zipf")
    a, labels = streams.stream(x, y, bursts, 0)
    assert torch.equal(labels.sort().values, y.sort().values)
    assert torch.equal(a.flatten(1).sum(1).sort().values, x.flatten(1).sum(1).sort().values)
    b, again = streams.stream(x, y, streams.Scenario("noise", "bursts", "zipf"), 0)
    assert torch.equal(labels, again)
    assert not torch.equal(a, b)


def test_scenarios_for_testing_and_for_validation_share_no_corruption():
    test, validation = (streams.scenarios(part, "every", "every") for part in ("test", "validation"))
    assert len(test) == len(validation) == 12
    assert not {item.corruption for item in test} & {item.corruption for item in validation}
    assert streams.scenarios("noise", "iid", "zipf") == [streams.Scenario("noise", "iid", "zipf")]


def test_a_classifier_learns_glyphs():
    net = streams.classifier({"seed": 0, "side": 16, "steps": 150, "width": 8})
    x, y, _ = streams.pool({"images": 240, "prior": "balanced", "side": 16, "seed": 0})
    assert not net.training
    accuracy = (net(x).argmax(1) == y).float().mean().item()
    assert accuracy > 5 / 60
    assert math.isfinite(accuracy)
