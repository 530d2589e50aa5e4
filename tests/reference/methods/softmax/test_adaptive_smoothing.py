import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reference.methods.robustness.attacks import worst_case
from reference.methods.softmax import adaptive_smoothing as smoothing
from reference.methods.softmax import adaptive_smoothing_frontier as frontier
from reference.methods.softmax import adaptive_smoothing_nets as nets
from reference.methods.softmax.adaptive_smoothing import Mixed, MixingNet, MixingTraining
from reference.methods.softmax.adaptive_smoothing_frontier import Accuracy

seeds = st.integers(0, 10_000)


def logits(seed, count=200, classes=4):
    random = torch.Generator().manual_seed(seed)
    return tuple(5 * torch.rand((2, count, 1), generator=random, dtype=torch.float64)
                 * torch.randn((2, count, classes), generator=random, dtype=torch.float64))


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.0, 1.0), st.floats(0.1, 4.0))
def test_the_mixture_is_in_probability_space(seed, alpha, scale):
    g, h = logits(seed)
    f = smoothing.mix(g, h, alpha, scale, 1.0)
    assert torch.allclose(f.exp(), (1 - alpha) * (scale * g).softmax(1) + alpha * h.softmax(1))
    assert torch.allclose(f.logsumexp(1), torch.zeros(len(f), dtype=f.dtype), atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.5, 1.0))
def test_a_margin_of_h_is_safe_and_the_bound_is_tight(seed, alpha):
    g, h = logits(seed)
    y = h.argmax(1)
    safe = smoothing.margins(h.log_softmax(1)) >= smoothing.needed_margin(alpha)
    second = h.scatter(1, y[:, None], -torch.inf).argmax(1)
    for opponent in (g, 100 * nn.functional.one_hot(second, 4).double()):
        f = smoothing.mix(opponent, h, alpha, 1.0, 1.0)
        assert (f.argmax(1) == y)[safe].all()
    unsafe = smoothing.margins(h.log_softmax(1)) < smoothing.needed_margin(alpha) - 1e-9
    assert (f.argmax(1) != y)[unsafe].all()


def test_mixing_logits_would_lose_the_lemma():
    h = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([[-100.0, 100.0]], dtype=torch.float64)
    assert smoothing.margins(h.log_softmax(1)) > smoothing.needed_margin(0.8)
    assert smoothing.mix(g, h, 0.8).argmax(1).item() == 0
    assert (0.2 * g + 0.8 * h).argmax(1).item() == 1


def test_alpha_may_differ_by_row_and_carries_gradients():
    g, h = (item[:6].requires_grad_() for item in logits(0))
    alpha = torch.linspace(0.1, 0.9, 6, dtype=torch.float64, requires_grad=True)
    whole = smoothing.mix(g, h, alpha)
    for row in range(6):
        assert torch.allclose(whole[row], smoothing.mix(g[row : row + 1], h[row : row + 1], alpha[row].item())[0])
    assert torch.autograd.gradcheck(smoothing.mix, (g, h, alpha))


@pytest.mark.parametrize(("alpha", "which"), [(0.0, 0), (1.0, 1)])
def test_the_ends_are_the_classifiers_and_finite(alpha, which):
    g, h = (30 * item.float() for item in logits(1))
    f = smoothing.mix(g, h, alpha)
    assert torch.equal(f, ((2 * g).log_softmax(1), h.log_softmax(1))[which])
    assert torch.isfinite(f).all()


def test_lipschitz_radius_by_hand_and_against_a_search():
    h = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    lipschitz = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    expected = min((0.9 * 0.5 - 0.1) / (0.9 * 3), (0.9 * 0.6 - 0.1) / (0.9 * 5))
    assert smoothing.lipschitz_radius(h, lipschitz, 0.9).item() == pytest.approx(expected)
    assert smoothing.lipschitz_radius(h, lipschitz, 0.5).item() == 0.0
    moved = h + torch.tensor([-expected, 2 * expected, 4 * expected]) * 0.999
    margin = moved[:, 0] - moved[:, 1:].max(1).values
    assert margin.item() >= smoothing.needed_margin(0.9) - 1e-9


def test_gaussian_radius_is_cohens_at_alpha_1_and_smaller_below():
    h = torch.tensor([[0.8, 0.15, 0.05], [0.5, 0.3, 0.2]], dtype=torch.float64)
    quantile = torch.distributions.Normal(0, 1).icdf
    cohen = 0.5 * 0.5 * (quantile(h[:, 0]) - quantile(h[:, 1]))
    assert torch.allclose(smoothing.gaussian_radius(h, 1.0, 0.5), cohen)
    radii = torch.stack([smoothing.gaussian_radius(h, alpha, 0.5) for alpha in (0.8, 0.9, 0.99, 1.0)])
    assert (radii.diff(dim=0) >= 0).all()
    expected = 0.25 * (quantile(0.9 * h[0, 0]) - quantile(0.9 * h[0, 1] + 0.1))
    assert smoothing.gaussian_radius(h, 0.9, 0.5)[0].item() == pytest.approx(expected.item())


class Stub(nn.Module):
    def __init__(self, seed, width=6, classes=3):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.first, self.head = nn.Linear(4, width), nn.Linear(width, classes)
        for layer in (self.first, self.head):
            layer.weight.data = torch.randn(layer.weight.shape, generator=random)
            layer.bias.data.zero_()

    def features(self, x):
        return self.first(x.flatten(1)).relu()

    def forward(self, x):
        return self.head(self.features(x))


def mixture(seed=0):
    g, h = Stub(1), Stub(2)
    return Mixed(g, h, MixingNet(g, h, 12, seed))


X = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(5))
Y = torch.arange(40) % 3


def test_a_networks_alpha_lies_in_its_range_and_gradients_pass_through_it():
    mixed = mixture().eval()
    alpha = mixed.alpha_of(X)
    assert alpha.shape == (40,)
    assert 0.84 < alpha.min() < alpha.max() < 0.99
    leaf = X.clone().requires_grad_()
    (whole,) = torch.autograd.grad(mixed(leaf)[:, 0].sum(), leaf)
    fixed = smoothing.mix(mixed.g(leaf), mixed.h(leaf), alpha.detach())
    (without_alpha,) = torch.autograd.grad(fixed[:, 0].sum(), leaf)
    assert not torch.allclose(whole, without_alpha)
    own = {id(p) for p in mixed.alpha.parameters()}
    assert len(own) == 6
    assert not own & {id(p) for p in [*mixed.g.parameters(), *mixed.h.parameters()]}


def test_mixing_loss_by_hand():
    score, attacked = torch.tensor([0.5, -1.0]), torch.tensor([True, False])
    f, y = torch.tensor([[0.7, 0.3], [0.4, 0.6]]).log(), torch.tensor([0, 0])
    bce = -(torch.sigmoid(score[0]).log() + torch.sigmoid(-score[1]).log()) / 2
    ce = -(torch.tensor(0.7).log() + torch.tensor(0.4).log()) / 2
    assert smoothing.mixing_loss(score, f, y, attacked).item() == pytest.approx((1.5 * bce + 0.2 * bce * ce).item())


def test_the_mixing_network_learns_to_tell_attacked_images():
    mixed = mixture()
    before = [p.clone() for p in [*mixed.g.parameters(), *mixed.h.parameters()]]
    model = MixingTraining(mixed, lambda f, x, y: x + 0.5)
    optimizer = torch.optim.Adam(model.net.parameters(), lr=0.01)
    for _ in range(60):
        model.train()
        loss = model.loss(X, Y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mixed.eval()
    with torch.no_grad():
        assert mixed.alpha_of(X + 0.5).mean() > mixed.alpha_of(X).mean() + 0.05
        assert torch.isfinite(model.eval().loss(X, Y))
    after = [*mixed.g.parameters(), *mixed.h.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_choose_finds_the_first_that_is_enough():
    grid = tuple(range(22))
    for needed in (0, 5, 21):
        asked = []
        assert frontier.choose(grid, lambda v, asked=asked: asked.append(v) or float(v), needed) == needed
        assert len(asked) <= 5
    assert frontier.choose(grid, float, 99) == 21
    assert list(frontier.ALPHAS) == sorted(frontier.ALPHAS)
    assert (frontier.ALPHAS[0], frontier.ALPHAS[-1]) == (0.5, 1.0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1))
def test_the_hull_holds_every_point_and_falls(pairs, robust):
    points = [Accuracy(*pair) for pair in pairs]
    for point in points:
        assert frontier.clean_at(point.robust, points) >= point.clean
    reached = [value for value in (robust, robust / 2) if value <= max(point.robust for point in points)]
    values = [frontier.clean_at(value, points) for value in reached]
    assert values == sorted(values)


def test_the_hull_by_hand():
    points = [Accuracy(0.9, 0.1), Accuracy(0.7, 0.5), Accuracy(0.75, 0.3)]
    for robust, clean in ((0.1, 0.9), (0.3, 0.8), (0.5, 0.7), (0.6, 0.7), (0.0, 0.9)):
        assert frontier.clean_at(robust, points) == pytest.approx(clean), robust


def test_a_mixture_is_attacked_through_itself_a_flatter_g_and_both_classifiers():
    f = mixture().eval()
    effort = frontier.Effort(steps=2, restarts=3, targets=2)
    assert len(frontier.attacks_on(f, 0.1, effort)) == 3 + 2 + 3
    assert len(frontier.attacks_on(f.h, 0.1, effort)) == 3 + 2


def test_attacks_through_a_mixture_stay_in_the_ball_and_win_when_it_is_large():
    random = torch.Generator().manual_seed(3)
    g, h = (nn.Linear(6, 3) for _ in range(2))
    for layer in (g, h):
        layer.weight.data, layer.bias.data = 8 * torch.randn((3, 6), generator=random), torch.zeros(3)
    x, f = torch.rand((100, 6), generator=random), Mixed(g, h, 0.8)
    y = f(x).argmax(1)
    for eps in (0.05, 1.0):
        attacks = frontier.attacks_on(f, eps, frontier.Effort(steps=20, restarts=1, targets=1))
        attacked, right = worst_case(f, x, y, attacks, random)
        assert (attacked - x).abs().max() <= eps + 1e-6
        assert 0.0 <= attacked.min() <= attacked.max() <= 1.0
    assert right.float().mean() < 0.02


def config(**changes):
    rates = {"standard_lr": 0.02, "adversarial_lr": 0.02, "trades_lr": 0.02}
    return {"classes": 5, "seed": 0, "steps": 30, "attack_steps": 3, **rates, **changes}


@pytest.fixture(scope="module")
def case():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield frontier.case(config())
    torch.set_num_threads(before)


def test_the_robust_classifier_is_the_robust_one_and_attacks_stay_in_the_ball(case):
    standard, adversarial = (case.points["test"][name] for name in ("standard", "adversarial"))
    assert standard.clean > 0.5
    assert adversarial.robust > standard.robust + 0.1
    x = nets.split(5, 0).test_x
    assert (case.seen.attacked - x).abs().max() <= nets.EPS + 1e-6
    assert case.seen.right.double().mean().item() == pytest.approx(adversarial.robust)
    for points in case.points.values():
        assert all(0.0 <= point.robust <= point.clean <= 1.0 for point in points.values())


def test_the_chosen_alpha_keeps_what_is_needed_on_validation_images(case):
    assert case.needed == pytest.approx(case.points["val"]["adversarial"].robust - frontier.SLACK)
    assert case.alpha == 1.0 or case.points["val"]["mixed"].robust >= case.needed
    assert case.points["test"]["mixed"] in case.curve
    assert case.points["test"]["adversarial"] in case.curve
    assert case.gain(case.points["test"]["standard"]) == pytest.approx(0.0)


def test_flattening_shrinks_the_gap_and_raises_alpha(case):
    data = nets.split(5, 0)
    gaps = [frontier.margin_gap(case.h, scale, case.seen, data.test_x, data.test_y) for scale in (1.0, 0.01)]
    assert abs(gaps[1]) < 0.02 < abs(gaps[0])
    assert frontier.mixed_at_scale(case, 1.0, config()) == (case.alpha, case.points["test"]["mixed"])
    assert frontier.mixed_at_scale(case, 0.1, config())[0] >= case.alpha


def test_an_adaptive_mixture_is_chosen_like_a_constant_one(case):
    found = frontier.adaptive(case, config(lr=0.005, steps=5))
    assert set(found.points) == {"val", "test"}
    assert 0.5 <= found.alpha_clean <= 0.99
    assert 0.5 <= found.alpha_attacked <= 0.99


@pytest.mark.parametrize(("kind", "count"), [("trades", 4), ("adversarial", 3)])
def test_a_sweep_has_a_point_for_each_setting(kind, count):
    found = frontier.sweep(config(kind=kind, steps=3, attack_steps=1))
    assert {part: len(points) for part, points in found.items()} == {"val": count, "test": count}


def test_a_mixing_networks_range_can_be_moved(case):
    net = nets.mixing_net(case.g, case.h, config(steps=5, lr=0.005))
    x = nets.split(5, 0).val_x
    assert 0.84 < net(x).min() < net(x).max() < 0.99
    assert nets.in_range(net, 0.5)(x).min() < 0.8
    assert not any(p.requires_grad for p in net.parameters())


def test_images_are_in_range_and_differ_by_seed_and_part():
    data = nets.split(5, 0)
    assert 0.0 <= data.train_x.min() <= data.train_x.max() <= 1.0
    assert len(data.test_x) == 5 * nets.PER_CLASS["test"]
    assert not torch.equal(data.test_x, nets.split(5, 1).test_x)
    assert not torch.equal(data.test_x[: len(data.val_x)], data.val_x)
