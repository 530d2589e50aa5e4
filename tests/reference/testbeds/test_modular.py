import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.testbeds import modular, training
from reference.testbeds.modular import UnbiasedMLP, arithmetic, sparse_parity


def numbers(x, modulus):
    return x[:, :modulus].argmax(1), x[:, modulus:].argmax(1)


@pytest.mark.parametrize("operation", modular.OPERATIONS)
def test_every_pair_is_there_once_with_its_result(operation):
    task = arithmetic(operation, 11, 0.4, seed=3)
    assert (len(task.train_y), len(task.test_y), task.width, task.classes) == (48, 73, 22, 11)
    x, y = torch.cat([task.train_x, task.test_x]), torch.cat([task.train_y, task.test_y])
    assert x.dtype == torch.float32
    assert torch.equal(x.sum(1), torch.full((121,), 2.0))
    a, b = numbers(x, 11)
    assert sorted((11 * a + b).tolist()) == list(range(121))
    for i, j, result in zip(a.tolist(), b.tolist(), y.tolist(), strict=True):
        assert result == (i + j if operation == "add" else i * j) % 11


@given(share=st.floats(0.1, 0.9), seed=st.integers(0, 2**63))
@settings(max_examples=20, deadline=None)
def test_the_share_is_kept_and_the_seed_decides(share, seed):
    task, again = arithmetic("add", 13, share, seed), arithmetic("add", 13, share, seed)
    assert len(task.train_y) == round(share * 169)
    assert torch.equal(task.train_x, again.train_x)
    assert not torch.equal(task.train_y, arithmetic("add", 13, share, seed + 1).train_y)


@pytest.mark.parametrize("share", [0.0, 0.001, 1.0])
def test_empty_parts_and_unknown_operations_are_refused(share):
    with pytest.raises(ValueError, match="empty"):
        arithmetic("add", 7, share, 0)
    with pytest.raises(KeyError, match="add, product"):
        arithmetic("minus", 7, 0.5, 0)


def test_parity_depends_on_the_relevant_signs_alone():
    task = sparse_parity(seed=5)
    assert (task.width, task.classes, len(task.train_y), len(task.test_y)) == (43, 2, 1000, 1000)
    x, y = torch.cat([task.train_x, task.test_x]), torch.cat([task.train_y, task.test_y])
    assert torch.equal(x.abs(), torch.ones_like(x))
    triples = torch.combinations(torch.arange(43), 3)
    products = x[:, triples].prod(-1)  # [rows, triples]
    explaining = ((products < 0) == (y[:, None] == 1)).all(0)
    assert explaining.sum() == 1
    assert len(torch.unique(x, dim=0)) == 2000
    assert not torch.equal(x, sparse_parity(seed=6).train_x)
    assert 0.4 < y.float().mean() < 0.6


def test_all_strings_can_be_asked_for_and_no_more():
    task = sparse_parity(seed=0, relevant=2, noise_bits=3, rows=32)
    assert len(torch.unique(torch.cat([task.train_x, task.test_x]), dim=0)) == 32
    with pytest.raises(ValueError, match="no 33 different"):
        sparse_parity(seed=0, relevant=2, noise_bits=3, rows=33)


def test_batches_are_the_whole_training_part_in_one_order():
    task = arithmetic("product", 7, 0.5, 1)
    batches = task.batches()
    stream = iter(batches)
    for _ in range(3):
        x, y = next(stream)
        assert torch.equal(x, task.train_x)
        assert torch.equal(y, task.train_y)
    assert batches.digest != arithmetic("product", 7, 0.5, 2).batches().digest


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_net_is_homogeneous_in_its_matrices(scale):
    net = UnbiasedMLP((14, 20, 20, 7), seed=0)
    x = arithmetic("add", 7, 0.5, 0).train_x
    before = net(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(scale)
    assert torch.allclose(net(x), scale**3 * before, rtol=1e-4, atol=1e-6)


def test_initial_weights_follow_torchs_law_and_the_seed():
    net = UnbiasedMLP((226, 200, 113), seed=2)
    assert [tuple(p.shape) for p in net.parameters()] == [(200, 226), (113, 200)]
    for parameter in net.parameters():
        bound = parameter.shape[1] ** -0.5
        assert parameter.abs().max() <= bound
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    same, other = UnbiasedMLP((226, 200, 113), seed=2), UnbiasedMLP((226, 200, 113), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_net_learns_its_training_pairs():
    task = arithmetic("add", 7, 0.8, 0)
    net = UnbiasedMLP((14, 64, 7), seed=0)
    history = training.train(net, task.batches(), torch.optim.Adam(net.parameters(), lr=0.01), None, 200)
    assert history.train_loss[-1] < 0.1 < history.train_loss[0]
    assert (net(task.train_x).argmax(1) == task.train_y).all()


def test_the_criterion_is_what_is_trained():
    task = arithmetic("add", 5, 0.5, 0)
    net = UnbiasedMLP((10, 5), seed=0, criterion=lambda logits, y: (logits.sum() + y.sum()) * 2)
    assert torch.allclose(net.loss(task.train_x, task.train_y), 2 * (net(task.train_x).sum() + task.train_y.sum()))
