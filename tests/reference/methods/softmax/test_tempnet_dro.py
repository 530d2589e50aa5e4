import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from reference.methods.softmax import tempnet_dro as dro
from reference.methods.softmax import tempnet_dro_contrastive as contrast
from reference.methods.softmax import tempnet_dro_numba, tempnet_dro_words
from reference.methods.softmax.tempnet_dro import PrototypeTempNet, Range, TempNet
from reference.testbeds.seeding import generator
from reference.testbeds.word_lm import WordLM
from reference.testbeds.words import Words

WIDE = Range(1e-3, 1e3)
SEEDS = st.integers(0, 10_000)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone():
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def logits(seed=0, rows=5, vocabulary=30, spread=2.0):
    return spread * torch.randn(rows, vocabulary, generator=generator("logits", seed), dtype=torch.float64)


# --- the robust loss ---


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, share=st.floats(0.05, 0.9), spread=st.floats(0.5, 6))
def test_primal_equals_dual_and_the_entropy_is_levelled(seed, share, spread):
    h, labels = logits(seed, spread=spread), torch.arange(5)
    rho = share * math.log(30)
    tau = dro.exact_tau(h, rho, WIDE, steps=100)
    p = (h / tau[:, None]).softmax(1)
    assert ((p * (30 * p).log()).sum(1) - rho).abs().max() <= 1e-7
    dual = dro.robust_loss(h, tau, rho, labels)
    torch.testing.assert_close(dro.primal_value(h, p, labels), dual, rtol=0, atol=1e-8)
    for factor in (0.9, 1.1):
        assert (dro.robust_loss(h, factor * tau, rho, labels) >= dual).all()


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, share=st.floats(0.05, 0.95))
def test_the_slope_is_the_derivative(seed, share):
    h, labels, rho = logits(seed), torch.arange(5), share * math.log(30)
    tau = torch.linspace(0.3, 2, 5, dtype=torch.float64).requires_grad_()
    dro.robust_loss(h, tau, rho, labels).sum().backward()
    torch.testing.assert_close(tau.grad, dro.slope(h, tau.detach(), rho))


def test_the_loss_is_convex_in_the_temperature():
    grid = torch.linspace(0.1, 4, 50, dtype=torch.float64)
    losses = dro.robust_loss(logits(rows=1).expand(50, -1), grid, 1.7, torch.full((50,), 3))
    assert (losses.diff().diff() > -1e-9).all()


def test_the_loss_is_its_definition_and_the_official_form():
    h, labels, rho = logits(), torch.arange(5), 1.3
    tau = torch.linspace(0.3, 2, 5, dtype=torch.float64)
    difference = h - h.gather(1, labels[:, None])
    definition = tau * (difference / tau[:, None]).exp().mean(1).log() + tau * rho
    official = tau * cross_entropy(h / tau[:, None], labels, reduction="none") + (rho - math.log(30)) * tau
    torch.testing.assert_close(dro.robust_loss(h, tau, rho, labels), definition)
    torch.testing.assert_close(dro.robust_loss(h, tau, rho, labels), official)


def test_temperatures_outside_the_range_are_clamped_and_counted():
    allowed = Range(0.5, 1.0)
    h = logits(rows=300, spread=1.0)
    free, held = (dro.exact_tau(h, dro.rho_for(2.9, 30), some, steps=60) for some in (WIDE, allowed))
    torch.testing.assert_close(held, free.clamp(0.5, 1.0), rtol=0, atol=1e-6)
    outside = (free <= 0.5) | (free >= 1.0)
    assert 0 < outside.sum() < 300
    assert torch.equal(dro.clamped(dro.exact_tau(h, dro.rho_for(2.9, 30), allowed), allowed), outside)


def test_the_constant_minimises_the_mean():
    h, rho = logits(rows=50), 1.5
    best = dro.constant_tau(h, rho, Range(0.01, 5))

    def mean(tau):
        return dro.robust_loss(h, torch.full((50,), tau, dtype=torch.float64), rho, torch.zeros(50).long()).mean()

    assert mean(best) <= min(mean(best * 1.02), mean(best * 0.98))


def test_the_gap_is_closed_by_bisection_alone():
    h, rho, allowed = logits(rows=50), 1.5, Range(0.01, 5)
    constant = dro.constant_tau(h, rho, allowed)
    best = dro.exact_tau(h, rho, allowed)
    assert dro.gap_closed(h, best, rho, constant, allowed) == pytest.approx(1)
    level = torch.full((50,), constant, dtype=torch.float64)
    assert dro.gap_closed(h, level, rho, constant, allowed) == pytest.approx(0)
    assert 0 < dro.gap_closed(h, (best + level) / 2, rho, constant, allowed) < 1
    assert dro.gap_closed(h, 3 * level, rho, constant, allowed) < 0


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, share=st.floats(0.2, 0.9), spread=st.floats(0.5, 10))
def test_the_compiled_bisection_is_the_same(seed, share, spread):
    h, target = logits(seed, vocabulary=200, spread=spread).float(), share * math.log(200)
    found = np.empty(5, np.float32)
    tempnet_dro_numba.exact_tau(h.numpy(), target, 0.01, 4.0, 24, found)
    expected = dro.exact_tau(h.double(), dro.rho_for(target, 200), Range(0.01, 4.0), steps=40)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3)


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="0 < low < high"):
        Range(0.5, 0.5)


# --- the networks ---


def test_the_network_is_its_equation():
    net, h = TempNet(30, 3, Range(0.1, 0.9)), logits().float()
    with torch.no_grad():
        net.first.weight.mul_(20)
        net.second.weight.mul_(5)
        net.scaler.fill_(0.3)
    net.eval()
    v = h - h.max(1, keepdim=True).values
    v = v / v.norm(dim=1, keepdim=True)
    x = torch.sigmoid(v @ net.first.weight.T + net.first.bias) @ net.second.weight.T + net.second.bias
    w = (x / math.exp(0.3)).softmax(1)
    tau = 0.1 + 0.8 * torch.sigmoid(((w - 1 / 256) * x).sum(1))
    torch.testing.assert_close(net(h), tau)
    assert tau.std() > 1e-4


def test_the_prototype_network_is_its_equation():
    net, v = PrototypeTempNet(8, 3, Range(0.01, 0.05)), normalize(logits(vocabulary=8), dim=1).float()
    net.eval()
    q = torch.sigmoid(v @ net.projection.weight.T) @ normalize(net.prototypes, dim=1).T
    w = (q / 0.01).softmax(1)
    torch.testing.assert_close(net(v), 0.01 + 0.04 * torch.sigmoid(((w - 1 / 256) * q.sigmoid()).sum(1)))


@pytest.mark.parametrize("top", [None, 10])
def test_no_gradient_reaches_the_model_and_all_parameters_get_one(top):
    h = logits().float().requires_grad_()
    net = TempNet(30, 0, top=top)
    net(h).sum().backward()
    assert h.grad is None
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_sorted_inputs_make_it_blind_to_the_order_of_words():
    net, h = TempNet(30, 0, top=10), logits().float()
    net.eval()
    torch.testing.assert_close(net(h), net(h[:, torch.randperm(30, generator=generator("order"))]))


def test_dropout_is_its_own_and_only_in_training():
    first, again = (dro.Dropout(0.5, 7) for _ in range(2))
    x = torch.ones(50, 40)
    masked = first(x)
    assert torch.equal(masked, again(x))
    assert set(masked.unique().tolist()) == {0.0, 2.0}
    assert masked.mean().item() == pytest.approx(1, abs=0.1)
    first.eval()
    assert torch.equal(first(x), x)


# --- contrastive ---


def test_running_means_forget_slowly():
    similarity = torch.rand(4, 4, generator=generator("s"))
    side, tau, anchors = contrast.GlobalLoss(6, rho=1.0, gamma=0.25), torch.full((4,), 0.3), torch.tensor([5, 0, 2, 3])
    side(similarity, anchors, tau)
    scaled = (similarity - similarity.diagonal()[:, None]) / 0.3
    mean = (scaled.exp().sum(1) - 1) / 3
    torch.testing.assert_close(side.log_mean[anchors].exp().float(), mean)
    assert side.log_mean[[1, 4]].isnan().all()
    side(2 * similarity, anchors, tau)
    later = ((2 * scaled).exp().sum(1) - 1) / 3
    torch.testing.assert_close(side.log_mean[anchors].exp().float(), 0.75 * mean + 0.25 * later)


def test_extreme_temperatures_do_not_overflow():
    similarity = 2 * torch.rand(6, 6, generator=generator("s")) - 1
    side = contrast.GlobalLoss(6, rho=1.0)
    for tau in (0.001, 10.0, 0.001):
        found = side(similarity, torch.arange(6), torch.full((6,), tau))
        assert torch.isfinite(found.loss) and torch.isfinite(found.tau).all()


def test_individual_temperatures_reach_the_radius():
    """With one fixed batch iSogCLR's temperatures go to where KL = rho, the root that bisection finds."""
    left, right = (normalize(logits(i, rows=12, vocabulary=6).float(), dim=1) for i in range(2))
    objective = contrast.Individual(12, 0.8, Range(0.01, 2.0), rate=0.02, start=0.5)
    for side in objective.sides:
        side.gamma = 1.0
    for _ in range(400):
        objective(left, right, torch.arange(12))
    difference = left @ right.T
    negatives = difference[~torch.eye(12, dtype=torch.bool)].view(12, 11).double()
    expected = dro.exact_tau(negatives, 0.8, Range(0.01, 2.0), steps=40)
    torch.testing.assert_close(objective.tau[0].double(), expected, rtol=0.05, atol=0.01)


def test_recall_by_hand():
    similarity = torch.tensor([[0.9, 0.1, 0.0], [0.95, 0.5, 0.2], [0.1, 0.2, 0.3]])
    assert contrast.recall_at_1(similarity).item() == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_halves_are_blind_to_each_other():
    model = contrast.TwoView(contrast.InBatch(0.1), 0)
    model.eval()
    images = torch.rand(3, 1, 16, 16, generator=generator("images"))
    other = images.clone()
    other[..., 8:] = 0.5
    left, right = model.embed(images)
    changed_left, changed_right = model.embed(other)
    assert torch.equal(left, changed_left)
    assert not torch.allclose(right, changed_right)


def test_long_tails():
    images = contrast.long_tailed(6, 8, 1.0, 0)
    assert len(images) == 8 + 4 + 3 + 2 + 2 + 2
    assert images.shape[1:] == (1, 16, 16)


@pytest.mark.parametrize("arm", ["clip", "sogclr", "isogclr", "tempnet"])
def test_every_objective_learns(arm):
    images, held_out = contrast.long_tailed(8, 12, 0.5, 0), contrast.balanced(8, 2, 0, "val")
    tuned = {"tau": 0.1, "rho": 1.0}
    model = contrast.TwoView(contrast.objective_of(arm, len(images), tuned, 0), 0)
    contrast.fit(model, images, held_out, 40, 32, 0.003, 0)
    assert contrast.recall(model, images[:32]) > 0.4


def test_temperatures_spread_where_each_image_has_its_own():
    images, validation, test = contrast.halves({"classes": 6, "largest": 8, "seed": 0})
    assert len(validation) == len(test) == 12
    found = {arm: contrast.spread(contrast.TwoView(
        contrast.objective_of(arm, len(images), {"tau": 0.1, "rho": 1.0}, 0), 0), test) for arm in ("clip", "tempnet")}
    assert found["clip"] == {"tau_mean": pytest.approx(0.1), "tau_std": 0.0}
    assert 0 < found["tempnet"]["tau_std"] < found["tempnet"]["tau_mean"] < contrast.ALLOWED.high


# --- words ---


@pytest.fixture(scope="module")
def bed():
    random = np.random.default_rng(0)
    text = torch.from_numpy(np.minimum(random.geometric(0.1, 9000), 59)).long()
    train, validation, test = text.split([7000, 1000, 1000])
    vocabulary, counts = tuple(map(str, range(60))), torch.bincount(text, minlength=60)
    words = Words(train, validation, test, vocabulary, counts, {}, "made up")
    return words, tempnet_dro_words.frozen(words, 16, 5, 0, 0, 128)


def test_held_out_blocks_are_taken_out_and_nothing_else(bed):
    kept, inside = tempnet_dro_words.without_some_blocks(bed[0])
    assert len(inside) == 990
    assert len(kept.train) + len(inside) == 7000 // 330 * 330
    assert torch.equal(kept.train[:330], bed[0].train[330:660])


def test_a_frozen_bed_predicts_as_the_model_does(bed):
    words, bed = bed
    model = WordLM("gru", 60, 9, 16)
    model.load_state_dict(bed["state"])
    found = tempnet_dro_words.prediction(bed, "test", lambda h: torch.ones(len(h)))
    windows = words.test[: len(words.test) // 33 * 33].view(-1, 33)
    few = windows[torch.arange(4) * len(windows) // 4]
    assert found["nll"] == pytest.approx(model.loss(few).item(), rel=1e-5)


def test_temperatures_of_every_arm(bed):
    _, bed = bed
    rho = dro.rho_for(2.0, 60)
    net = tempnet_dro_words.amortise(bed, rho, 3, 0.01, 0)
    arms = {arm: tempnet_dro_words.temperatures(arm, bed, rho, net)
            for arm in ("tau1", "constant", "bisection", "tempnet")}
    nll = {arm: tempnet_dro_words.prediction(bed, "validation", tau_of)["nll"] for arm, tau_of in arms.items()}
    assert nll["constant"] <= nll["tau1"] + 1e-9
    assert len(set(nll.values())) == 4
    found = tempnet_dro_words.amortisation(bed, net, rho)
    assert found["gap_closed_inside"] <= 1 + 1e-6
    assert 0 <= found["clamped"] <= 1


def test_writing_is_reproducible_and_cold_text_repeats_itself(bed):
    words, bed = bed
    judge = WordLM("gru", 60, 1, 16)
    prompts = words.test[:64].view(8, 8)
    found = [tempnet_dro_words.writing(bed, judge, lambda h, tau=tau: torch.full((len(h),), tau), prompts, 6, 0)
             for tau in (1.0, 1.0, 0.001)]
    assert found[0] == found[1]
    assert found[2]["distinct_2"] < found[0]["distinct_2"]
