import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from reference.methods.softmax.cfcd_adaptive_softmax import (
    SURE_ODDS,
    AdaCos,
    Adapted,
    ArcFace,
    CosFace,
    CosineHead,
    MadaCos,
    adapt,
    cosines,
    lowered,
)
from reference.methods.softmax.cfcd_adaptive_softmax_local import local_triplet_loss, matches
from reference.methods.softmax.cfcd_adaptive_softmax_retrieval import (
    Setting,
    head_of,
    intra_class_angle_deg,
    mean_angle_deg,
    mean_average_precision,
    progress,
    recall_at_1,
    retrieval,
    rule_of,
    train_retriever,
)

TOY = Setting(4, data_seed=0, init_seed=0, classes=6, unseen=10, per_class=8, batch=16, dim=8, width=4)


pytestmark = pytest.mark.usefixtures("one_thread")


def draw(seed, n=17, classes=9, spread=1.5):
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(classes, 8, generator=random, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=random)
    noise = torch.randn(n, 8, generator=random, dtype=torch.float64)
    return weights[labels] + spread * noise, weights, labels


@given(st.integers(0, 10_000), st.floats(0.001, 0.7), st.floats(0.2, 3.0))
@settings(max_examples=40, deadline=None)
def test_the_unfloored_values_solve_the_two_conditions(seed, alpha, spread):
    features, weights, labels = draw(seed, spread=spread)
    cosine = cosines(features, weights)
    found = adapt(cosine, labels, alpha)
    target = cosine.gather(1, labels[:, None])[:, 0]
    row = int(target.argsort()[(len(target) - 1) // 2])
    assert found.median == pytest.approx(target[row].item())
    logits = lowered(cosine, labels, found.free_scale, found.free_margin)[row]
    odds = logits[labels[row]] - logits[torch.arange(9) != labels[row]].logsumexp(0)
    assert odds.item() == pytest.approx(math.log(alpha / (1 - alpha)), abs=1e-8)
    sure = found.free_scale * (1 - found.free_margin) - logits[torch.arange(9) != labels[row]].logsumexp(0)
    assert sure.item() == pytest.approx(math.log(SURE_ODDS), abs=1e-8)


@given(st.integers(0, 10_000), st.floats(0.001, 0.7))
@settings(max_examples=40, deadline=None)
def test_the_floors(seed, alpha):
    features, weights, labels = draw(seed)
    found = adapt(cosines(features, weights), labels, alpha)
    assert found.scale == max(32.0, found.free_scale)
    assert found.margin >= 0
    if found.scale == found.free_scale:
        assert found.margin == max(0.0, found.free_margin)


def test_the_papers_scales():
    cosine = torch.tensor([[-0.2, 0.0], [0.0, 0.0], [0.9, 0.0], [0.95, 0.0]])
    labels = torch.zeros(4, dtype=torch.long)
    low = adapt(cosine, labels)
    assert low.median == 0.0  # the lower of the two in the middle
    assert low.free_scale == pytest.approx(20.0, abs=0.05)
    assert low.scale == 32.0
    high = adapt(cosine[:3] + torch.tensor([[0.5, 0.0]]), labels[:3])
    assert high.scale == pytest.approx(40.0, abs=0.05)


def test_scale_and_margin_rise_with_the_median():
    labels = torch.zeros(3, dtype=torch.long)
    found = [
        adapt(torch.tensor([[median, 0.1, -0.1]] * 3, dtype=torch.float64), labels, 0.1)
        for median in (0.4, 0.5, 0.6, 0.8)
    ]
    assert sorted(found, key=lambda item: item.scale) == found
    assert sorted(found, key=lambda item: item.margin) == found


def test_a_median_of_one_stays_finite():
    cosine = torch.tensor([[1.0, 0.3], [1.0, 0.2]])
    logits = MadaCos()(cosine, torch.tensor([0, 0]))
    assert torch.isfinite(cross_entropy(logits, torch.tensor([0, 0])))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_alpha_is_a_probability(alpha):
    with pytest.raises(ValueError, match="alpha is a probability"):
        adapt(torch.zeros(2, 2), torch.tensor([0, 1]), alpha)


@given(st.integers(0, 10_000), st.floats(0.01, 0.5))
@settings(max_examples=20, deadline=None)
def test_no_gradient_passes_through_the_adaptation(seed, alpha):
    features, weights, labels = draw(seed)
    cosine = cosines(features, weights).requires_grad_()
    rule = MadaCos(alpha)
    cross_entropy(rule(cosine, labels), labels, reduction="sum").backward()
    scale, margin = rule.log[-1].scale, rule.log[-1].margin
    p = torch.softmax(scale * (cosine.detach() - margin * torch.eye(9, dtype=torch.float64)[labels]), 1)
    assert torch.allclose(cosine.grad, scale * (p - torch.eye(9, dtype=torch.float64)[labels]))


@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
@settings(max_examples=20, deadline=None)
def test_arcface_turns_the_target_and_never_rises_with_the_angle(seed, margin):
    features, weights, labels = draw(seed)
    cosine = cosines(features, weights)
    logits = ArcFace(5.0, margin)(cosine, labels)
    theta = cosine.gather(1, labels[:, None]).acos()
    assume((theta <= math.pi - margin).all())
    assert torch.allclose(logits.gather(1, labels[:, None]), 5 * (theta + margin).cos())
    sweep = torch.linspace(1, -1, 400, dtype=torch.float64)[:, None]
    turned = ArcFace(1.0, margin)(sweep, torch.zeros(400, dtype=torch.long))[:, 0]
    assert (turned.diff() <= 1e-3).all()


def test_every_rule_without_its_margin_is_the_scaled_cosine():
    features, weights, labels = draw(0)
    cosine = cosines(features, weights)
    for rule in (ArcFace(7.0, 0.0), CosFace(7.0)):
        assert torch.allclose(rule(cosine, labels), 7 * cosine, atol=1e-5)
        assert torch.equal(rule.plain(cosine), 7 * cosine)
    mada = MadaCos(0.1)
    assert torch.equal(mada.plain(cosine), 32 * cosine)
    mada(cosine, labels)
    assert torch.equal(mada.plain(cosine), mada.log[-1].scale * cosine)


def test_adacos_by_its_closed_form_over_two_batches():
    features, weights, labels = draw(1)
    cosine = cosines(features, weights)
    rule, scale = AdaCos(9), math.sqrt(2) * math.log(8)
    target = cosine.gather(1, labels[:, None])[:, 0]
    angle = min(math.pi / 4, np.sort(target.acos().numpy())[8])
    for _ in range(2):
        b = ((scale * cosine).exp().sum(1) - (scale * target).exp()).mean().item()
        scale = math.log(b) / math.cos(angle)
        assert torch.allclose(rule(cosine, labels), scale * cosine)


def test_the_head_has_no_margin_in_evaluation():
    features, _, labels = draw(2)
    head = CosineHead(CosFace(6.0, 0.3), 9, 8, seed=0)
    with_margin = head(features.float(), labels)
    head.eval()
    plain = head(features.float(), labels)
    assert plain < with_margin
    assert torch.allclose(plain, cross_entropy(6 * cosines(features.float(), head.weight), labels))


@pytest.mark.peer
@pytest.mark.parametrize("name", ["ArcFaceLoss", "CosFaceLoss"])
def test_fixed_margins_agree_with_pytorch_metric_learning(name):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    features, weights, labels = draw(3)
    margin = math.degrees(0.3) if name == "ArcFaceLoss" else 0.3
    peer = getattr(losses, name)(num_classes=9, embedding_size=8, margin=margin, scale=12.0)
    peer.W.data = weights.T.clone()
    rule = ArcFace(12.0, 0.3) if name == "ArcFaceLoss" else CosFace(12.0, 0.3)
    ours = cross_entropy(rule(cosines(features, weights), labels), labels)
    assert ours.item() == pytest.approx(peer(features, labels).item(), rel=1e-5)


@pytest.mark.peer
def test_the_subcenter_head_is_set_by_the_seed_and_leaves_the_global_state_alone():
    pytest.importorskip("pytorch_metric_learning")
    before = torch.get_rng_state()
    first, again = (head_of("subcenter", TOY, {"scale": 16.0, "margin": 0.2}) for _ in range(2))
    assert torch.equal(first.W, again.W)
    assert first.W.shape == (8, 18)
    trained = train_retriever(TOY, first, 1e-3)
    assert not trained.history.failed
    assert trained.log == []
    assert torch.equal(torch.get_rng_state(), before)


def average_precision(similarity, right):
    order = np.argsort(-similarity, kind="stable")
    hits = np.flatnonzero(right[order]) + 1
    return np.mean(np.arange(1, len(hits) + 1) / hits)


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_mean_average_precision_is_the_textbooks(seed):
    random = np.random.default_rng(seed)
    similarity, query, gallery = random.random((7, 20)), random.integers(0, 3, 7), np.arange(20) % 3
    expected = np.mean([average_precision(row, gallery == label) for row, label in zip(similarity, query, strict=True)])
    found = mean_average_precision(torch.from_numpy(similarity), torch.from_numpy(query), torch.from_numpy(gallery))
    assert found == pytest.approx(expected)
    best = gallery[similarity.argmax(1)] == query
    assert recall_at_1(*map(torch.from_numpy, (similarity, query, gallery))) == pytest.approx(best.mean())


def test_a_perfect_order_has_precision_one_and_a_reversed_one_is_worse():
    gallery, query = torch.tensor([0, 0, 1, 1]), torch.tensor([0])
    assert mean_average_precision(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), query, gallery) == 1
    turned = mean_average_precision(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), query, gallery)
    assert turned == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_angles_to_the_class_mean():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert mean_angle_deg(features, torch.tensor([0, 0, 1])) == pytest.approx((45 + 45 + 0) / 3, abs=1e-4)


def test_progress_of_a_log():
    log = [Adapted(32 + step**2, 0.5, 0, 0, 0) for step in range(20)]
    found = progress(log)
    assert found["scale_rho"] == pytest.approx(1)
    assert found["margin_rho"] == 0
    assert found["last_scale"] == pytest.approx(32 + (18**2 + 19**2) / 2)
    assert set(progress([]).values()) == {0.0}


@pytest.mark.parametrize("name", ["softmax", "arcface", "cosface", "adacos", "madacos"])
def test_every_rule_trains_and_repeats(name):
    values = {"scale": 16.0, "margin": 0.1, "alpha": 0.02}
    first, again = (train_retriever(TOY, head_of(name, TOY, values), 3e-3) for _ in range(2))
    assert not first.history.failed
    assert torch.equal(first.model.head.weight, again.model.head.weight)
    assert len(first.log) == (4 if name in ("adacos", "madacos") else 0)
    found = retrieval(first.model, TOY, "test")
    assert 0 <= found["map"] <= 1
    assert 0 < intra_class_angle_deg(first.model, TOY) < 90
    assert first.model.training


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="no rule is called"):
        rule_of("sphereface", 6, {})


def test_the_three_sets_of_classes_are_disjoint_and_drawn_by_the_seed():
    seen, val, test = Setting(1, 0, 0).split()
    assert (len(seen), len(val), len(test)) == (150, 80, 100)
    assert len({*seen, *val, *test}) == 330
    assert Setting(1, 1, 0).split()[0] != seen


def test_matches_are_reciprocal_clear_and_important():
    anchor = torch.tensor([[0.0, 0.0], [1.0, 0.0], [8.0, 0.0]])
    positive = torch.tensor([[0.1, 0.0], [8.4, 0.0], [8.6, 0.0], [30.0, 0.0]])
    everywhere = torch.ones(4)
    # place 1 of the anchor is nearest to a place that has a nearer one; place 2 has two candidates equally near
    assert matches(anchor, positive, everywhere).tolist() == [[0, 0], [2, 1]]
    assert matches(anchor, positive, everywhere, max_ratio=0.5).tolist() == [[0, 0]]
    assert matches(anchor, positive, torch.tensor([0.0, 1.0, 1.0, 0.5])).tolist() == [[2, 1]]


def test_local_triplets_pull_matches_and_push_the_nearest_negatives():
    random = torch.Generator().manual_seed(0)
    anchor = normalize(torch.randn(6, 4, generator=random), dim=1).requires_grad_()
    positive = normalize(anchor.detach() + 0.05 * torch.randn(6, 4, generator=random), dim=1)
    negatives = normalize(torch.randn(3, 5, 4, generator=random), dim=2)
    attention = torch.arange(6.0)
    loss = local_triplet_loss(anchor, positive, negatives, attention)
    expected = 0.0
    for a, p in matches(anchor.detach(), positive, attention).tolist():
        for negative in negatives:
            nearest = (anchor[a].detach() - negative).square().sum(1).min()
            expected += max(0.0, ((anchor[a] - positive[p]).square().sum() - nearest + 1.1).item())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert anchor.grad[attention < 3].abs().sum() == 0
    assert anchor.grad[attention >= 3].abs().sum() > 0


def test_local_triplets_by_hand():
    anchor = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    positive = torch.tensor([[0.1, 0.0], [4.0, 0.5], [9.0, 9.0]])
    negatives = torch.tensor([[[0.0, 1.0], [5.0, 5.0]], [[0.5, 0.0], [0.0, 9.0]]])
    # both places match, attention leaves the first; 1.0 and 0.25 are its nearest negatives
    loss = local_triplet_loss(anchor, positive, negatives, torch.tensor([0.9, 0.1, 0.8]))
    assert loss.item() == pytest.approx((0.01 - 1.0 + 1.1) + (0.01 - 0.25 + 1.1), rel=1e-5)


def test_local_triplets_without_a_match_are_zero():
    # the anchor has one place, and it is as near to the second as to the first
    anchor, positive = torch.zeros(1, 3, requires_grad=True), torch.ones(2, 3)
    assert matches(anchor.detach(), positive, torch.ones(2)).tolist() == []
    loss = local_triplet_loss(anchor, positive, torch.ones(2, 2, 3), torch.ones(2))
    assert loss.item() == 0
    loss.backward()
    assert anchor.grad.abs().sum() == 0
