import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reference.methods.robustness import attacks
from reference.methods.robustness.training import AdversarialTraining, Trades
from reference.testbeds import nets
from reference.testbeds.digits import digits
from reference.testbeds.training import array_batches, train, warmup_cosine


@pytest.fixture(scope="module")
def digit_net():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    split = digits(0)
    net = nets.mlp(0, hidden=(32,))
    batches = array_batches(split.train_x, split.train_y, 64, 0, (split.val_x, split.val_y))
    train(net, batches, torch.optim.Adam(net.parameters(), lr=0.01), warmup_cosine(150), 150)
    torch.set_num_threads(before)
    return net.eval(), split.val_x[:150], split.val_y[:150]


def random():
    return torch.Generator().manual_seed(0)


def survivors(net, x, y, eps, found):
    _, right = attacks.worst_case(net, x, y, found, random())
    return right.double().mean().item()


def plain_pgd(net, eps, steps):
    def attack(x, y, generator):
        start = attacks.random_start(x, eps, generator)
        return attacks.pgd(net, x, y, eps, steps=steps, step_size=2.5 * eps / steps, start=start)

    return attack


@settings(max_examples=30, deadline=None)
@given(eps=st.floats(0.0, 1.5), steps=st.integers(1, 9), seed=st.integers(0, 99))
def test_no_attack_leaves_the_ball_or_the_range_of_pixels(eps, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    x, y = torch.rand((5, 1, 3, 4), generator=generator), torch.randint(4, (5,), generator=generator)
    start = attacks.random_start(x, eps, generator)
    objective = attacks.targeted_objective(1, net(x).detach())
    for x_adv in (
        start,
        attacks.pgd(net, x, y, eps, steps=steps, step_size=eps, start=start),
        attacks.apgd(net, x, y, eps, steps=steps, start=start),
        attacks.apgd(net, x, y, eps, steps=steps, start=start, objective=objective),
    ):
        assert x_adv.shape == x.shape
        assert (x_adv - x).abs().max() <= eps + 1e-6
        assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_nothing_survives_a_large_radius(digit_net):
    net, x, y = digit_net
    assert nets.accuracy(net, x, y) > 0.9
    assert survivors(net, x, y, 0.6, attacks.apgd_attack(net, 0.6, 20)) == 0.0
    assert survivors(net, x, y, 0.6, [plain_pgd(net, 0.6, 20)]) == 0.0
    assert survivors(net, x, y, 0.6, attacks.targeted_attack(net, 0.6, 20, 3)) == 0.0
    assert survivors(net, x, y, 0.0, attacks.apgd_attack(net, 0.0, 5)) == nets.accuracy(net, x, y)


def test_apgd_is_at_least_as_strong_as_pgd(digit_net):
    net, x, y = digit_net
    for eps in (0.03, 0.06, 0.1):
        by_apgd = survivors(net, x, y, eps, attacks.apgd_attack(net, eps, 20))
        by_pgd = survivors(net, x, y, eps, [plain_pgd(net, eps, 20)])
        assert by_apgd <= by_pgd + 0.01
        assert by_apgd < nets.accuracy(net, x, y)


def test_more_restarts_targets_and_radius_leave_less(digit_net):
    net, x, y = digit_net
    one = attacks.apgd_attack(net, 0.06, 10)
    more = [*one, *attacks.targeted_attack(net, 0.06, 10, 3)]
    assert survivors(net, x, y, 0.06, more) <= survivors(net, x, y, 0.06, one)
    left = [survivors(net, x, y, eps, attacks.apgd_attack(net, eps, 10)) for eps in (0.02, 0.05, 0.1, 0.2)]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[-1]


def test_on_a_linear_net_the_exact_worst_case_is_found():
    generator = torch.Generator().manual_seed(1)
    net = nn.Linear(20, 2)
    net.weight.data, net.bias.data = torch.randn((2, 20), generator=generator), torch.zeros(2)
    net.bias.data -= 0.5 * net.weight.data.sum(1)
    x = 0.3 + 0.4 * torch.rand((200, 20), generator=generator)
    y = net(x).argmax(1)
    apart = net.weight[0] - net.weight[1]
    eps = 0.02
    exact = (((x - 0.5) @ apart).abs() > eps * apart.abs().sum()).float().mean().item()
    assert 0.1 < exact < 0.9
    assert survivors(net, x, y, eps, attacks.apgd_attack(net, eps, 20)) == pytest.approx(exact, abs=1e-6)
    assert survivors(net, x, y, eps, [plain_pgd(net, eps, 20)]) == pytest.approx(exact, abs=1e-6)


def test_what_is_returned_fools_and_what_survives_is_untouched(digit_net):
    net, x, y = digit_net
    attacked, right = attacks.worst_case(net, x, y, attacks.apgd_attack(net, 0.06, 10), random())
    assert torch.equal(net(attacked).argmax(1) == y, right)
    assert torch.equal(attacked[right], x[right])
    assert 0 < right.sum() < len(y)


def test_an_attack_on_another_model_counts_by_what_it_does_to_this_one(digit_net):
    net, x, y = digit_net
    other = nets.mlp(7, hidden=(32,)).eval()
    transferred = survivors(net, x, y, 0.1, attacks.apgd_attack(other, 0.1, 10))
    assert survivors(net, x, y, 0.1, attacks.apgd_attack(net, 0.1, 10)) < transferred <= nets.accuracy(net, x, y)


def test_checkpoints_are_those_of_the_paper():
    assert attacks.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99, 100]
    assert attacks.checkpoints(10)[0] == 3
    assert attacks.checkpoints(1) == [1]


def test_objectives_by_hand():
    scores, y = torch.tensor([[2.0, 0.5, 1.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    assert torch.allclose(attacks.margin_objective(scores, y), torch.tensor([-1.0, 2.0]))
    assert torch.allclose(attacks.targeted_objective(0, scores)(scores, y), torch.tensor([-1.0, 2.0]))
    assert torch.allclose(attacks.targeted_objective(1, scores)(scores, y), torch.tensor([-1.5, -1.0]))
    assert torch.allclose(attacks.cross_entropy_objective(scores, y), -scores.log_softmax(1)[[0, 1], y])


def linear_case():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    net[1].weight.data = torch.randn((3, 4), generator=torch.Generator().manual_seed(3))
    net[1].bias.data.zero_()
    x = 0.2 + 0.6 * torch.rand((16, 1, 2, 2), generator=torch.Generator().manual_seed(4))
    return net, x, torch.arange(16) % 3


def test_adversarial_loss_is_the_cross_entropy_of_attacked_images():
    net, x, y = linear_case()
    clean = nn.functional.cross_entropy(net(x), y)
    for eps, attacked in ((0.0, False), (0.1, True)):
        model = AdversarialTraining(net, eps, steps=5, seed=0)
        loss = model.train().loss(x, y)
        assert (loss > clean + 0.01) if attacked else torch.allclose(loss, clean)
        assert torch.equal(model.eval().loss(x, y), clean)
    loss.backward()
    assert net[1].weight.grad.abs().sum() > 0


def test_trades_loss_is_clean_plus_beta_times_a_divergence():
    net, x, y = linear_case()
    clean = nn.functional.cross_entropy(net(x), y)
    losses = [Trades(net, 0.1, steps=5, seed=0, beta=beta).train().loss(x, y) for beta in (0.0, 1.0, 3.0)]
    assert torch.allclose(losses[0], clean)
    divergence = losses[1] - clean
    assert divergence > 0.001
    assert torch.allclose(losses[2] - clean, 3 * divergence, rtol=1e-4)
    assert torch.allclose(Trades(net, 0.0, steps=2, seed=0, beta=5.0).train().loss(x, y), clean)


def test_the_attack_in_training_sees_the_network_as_it_is_used():
    modes = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            modes.append(self.training)
            return self.layer(x.flatten(1))

    model = AdversarialTraining(Watched(), 0.1, steps=3, seed=0)
    model.train().loss(linear_case()[1], linear_case()[2])
    assert modes == [False] * 3 + [True]
    assert model.net.training


def test_adversarial_training_pays_clean_accuracy_for_robustness(digit_net):
    plain, x, y = digit_net
    split, eps = digits(0), 0.1
    net = nets.mlp(0, hidden=(32,))
    batches = array_batches(split.train_x, split.train_y, 64, 0, (split.val_x, split.val_y))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    train(AdversarialTraining(net, eps, 4, 0), batches, optimizer, warmup_cosine(150), 150)
    net.eval()
    robust = [survivors(model, x, y, eps, attacks.apgd_attack(model, eps, 15)) for model in (plain, net)]
    assert robust[1] > robust[0] + 0.2
