import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reference.methods.softmax import adaptive_smoothing as smoothing
from reference.methods.softmax import adaptive_smoothing_frontier as frontier
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


def test_a_mixture_is_attacked_through_itself_a_flatter_g_and_both_classifiers():
    f = mixture().eval()
    effort = frontier.Effort(steps=2, restarts=3, targets=2)
    assert len(frontier.attacks_on(f, 0.1, effort)) == 3 + 2 + 3
    assert len(frontier.attacks_on(f.h, 0.1, effort)) == 3 + 2
    assert len(frontier.attacks_on(f.h, 0.1, effort, [f.g])) == 3 + 2 + 1


def config(**changes):
    return {"data": "digits", "seed": 0, "steps": 30, "lr": 0.01, **changes}


def test_classifiers_mixtures_and_their_examination():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    g = frontier.classifier(config(kind="standard", steps=80))
    h = frontier.classifier(config(kind="adversarial", share=1.0, steps=80))
    effort = frontier.Effort(steps=6, restarts=1, targets=1)
    found = {name: frontier.examine(model, "digits", 0, "val", effort) for name, model in (
        ("g", g), ("h", h), ("half", Mixed(g, h, 0.5)), ("all", Mixed(g, h, 1.0)))}
    torch.set_num_threads(before)
    assert found["g"].accuracy.clean > 0.5
    assert found["h"].accuracy.robust > found["g"].accuracy.robust
    assert found["all"].accuracy.clean == found["h"].accuracy.clean
    for item in found.values():
        assert item.accuracy.robust <= item.accuracy.clean
        assert item.right.float().mean().item() == pytest.approx(item.accuracy.robust)
    split = frontier.data("digits", 0)
    assert (found["half"].attacked - split.val_x).abs().max() <= frontier.EPS["digits"] + 1e-6
    gaps = [frontier.margin_gap(h, scale, found["h"], split.val_x, split.val_y) for scale in (1.0, 0.01)]
    assert abs(gaps[1]) < 0.02 < abs(gaps[0])


def test_a_mixing_network_is_trained_on_the_digits():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    g, h = (frontier.classifier(config(kind=kind, share=1.0)) for kind in ("standard", "adversarial"))
    net = frontier.mixing_net(g, h, config(steps=10))
    torch.set_num_threads(before)
    x = frontier.data("digits", 0).val_x
    assert 0.84 < net(x).min() < net(x).max() < 0.99
    assert frontier.in_range(net, 0.5)(x).min() < 0.8
    assert not any(p.requires_grad for p in net.parameters())


def test_data_are_in_range_and_differ_by_seed():
    split = frontier.data("digits", 0)
    assert 0.0 <= split.train_x.min() <= split.train_x.max() <= 1.0
    assert frontier.digest("digits", 0) != frontier.digest("digits", 1)
    with pytest.raises(KeyError):
        frontier.data("letters", 0)
