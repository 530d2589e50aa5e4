import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from reference.methods.softmax import heads
from reference.testbeds.word_lm import LinearHead

WIDTH, VOCABULARY = 16, 60


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ids(count):
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def rows():
    return draw(VOCABULARY, WIDTH)


@pytest.fixture
def counts():
    return torch.arange(VOCABULARY, 0, -1)


@pytest.fixture(params=["low_rank", "adaptive", "hierarchical", "int4"])
def head(request, rows, counts):
    return {
        "low_rank": lambda: heads.LowRankHead.from_rows(rows, 4),
        "adaptive": lambda: heads.AdaptiveHead.from_rows(rows, counts, (10, 30), 2),
        "hierarchical": lambda: heads.HierarchicalHead(WIDTH, VOCABULARY, seed=0),
        "int4": lambda: heads.Int4Head(rows),
    }[request.param]()


def test_probabilities_sum_to_one_and_the_loss_is_their_cross_entropy(head):
    hidden, targets = draw(40, WIDTH, seed=1), ids(40)
    log_p = head.log_probabilities(hidden)
    assert log_p.shape == (40, VOCABULARY)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(40))
    expected = -log_p.gather(1, targets[:, None]).mean()
    torch.testing.assert_close(head.loss(hidden, targets), expected)


def test_full_rank_is_the_full_head(rows):
    hidden, full = draw(20, WIDTH, seed=1), LinearHead(WIDTH, VOCABULARY, 0)
    full.weight.data.copy_(rows)
    low = heads.LowRankHead.from_rows(rows, WIDTH)
    torch.testing.assert_close(low.log_probabilities(hidden), full.log_probabilities(hidden), rtol=1e-4, atol=1e-4)


def test_low_rank_is_the_best_of_its_rank(rows):
    low = heads.LowRankHead.from_rows(rows, 3)
    values = torch.linalg.svdvals(rows)
    error = (low.up @ low.down - rows).square().sum()
    torch.testing.assert_close(error, values[3:].square().sum())


def test_bytes_are_counted(rows, counts):
    assert heads.stored_bytes(LinearHead(WIDTH, VOCABULARY, 0)) == 4 * WIDTH * VOCABULARY
    assert heads.stored_bytes(heads.LowRankHead.from_rows(rows, 3)) == 4 * 3 * (WIDTH + VOCABULARY)
    assert heads.stored_bytes(heads.Int4Head(rows)) == VOCABULARY * (WIDTH // 2 + 2)
    for cutoffs, div in (((10,), 2), ((10, 30), 4), ((5, 20), 2)):
        head = heads.AdaptiveHead(WIDTH, VOCABULARY, cutoffs, div)
        assert heads.stored_bytes(head) == heads.adaptive_bytes(WIDTH, VOCABULARY, cutoffs, div)


@pytest.mark.parametrize("budget", [1500, 2500, 4000])
def test_shapes_use_the_budget(budget):
    shapes = list(heads.adaptive_shapes(WIDTH, VOCABULARY, budget))
    assert shapes
    for cutoffs, div in shapes:
        assert heads.adaptive_bytes(WIDTH, VOCABULARY, cutoffs, div) <= budget
        larger = tuple(c * (cutoffs[0] + 1) // cutoffs[0] for c in cutoffs)
        assert max(larger) >= VOCABULARY or heads.adaptive_bytes(WIDTH, VOCABULARY, larger, div) > budget
    rank = heads.largest_rank(WIDTH, VOCABULARY, budget)
    assert 4 * rank * (WIDTH + VOCABULARY) <= budget < 4 * (rank + 1) * (WIDTH + VOCABULARY)


def test_the_best_shape_has_the_lowest_loss(rows, counts):
    hidden, targets = draw(50, WIDTH, seed=1), ids(50)
    best = heads.best_adaptive(rows, counts, 2500, hidden, targets)
    losses = {shape: heads.AdaptiveHead.from_rows(rows, counts, *shape).loss(hidden, targets).item()
              for shape in heads.adaptive_shapes(WIDTH, VOCABULARY, 2500)}
    assert losses[best] == min(losses.values())


def test_an_adaptive_head_with_clusters_of_full_width_starts_near_the_full_head(rows, counts):
    rows = 0.1 * rows
    hidden, full = draw(200, WIDTH, seed=1), LinearHead(WIDTH, VOCABULARY, 0)
    full.weight.data.copy_(rows)
    right = full.log_probabilities(hidden)
    near = heads.AdaptiveHead.from_rows(rows, torch.ones(VOCABULARY), (20,), 1).log_probabilities(hidden)
    assert (near - right).abs().mean() < 0.2 * right.std()


def test_hierarchical_is_two_softmaxes():
    head, hidden = heads.HierarchicalHead(WIDTH, VOCABULARY, seed=3), draw(7, WIDTH, seed=1)
    targets = torch.tensor([0, 7, 8, 59, 58, 30, 31])
    assert (head.size, head.classes) == (8, 8)
    expected = 0.0
    for vector, word in zip(hidden, targets.tolist(), strict=True):
        inside = head.word_weight[word // 8] @ vector
        if word // 8 == 7:
            inside = inside[: VOCABULARY - 56]
        expected += cross_entropy(head.class_weight @ vector, torch.tensor(word // 8)).item()
        expected += cross_entropy(inside, torch.tensor(word % 8)).item()
    assert head.loss(hidden, targets).item() == pytest.approx(expected / 7, rel=1e-5)


def test_int4_rounds_to_the_grid_within_half_a_step(rows):
    head = heads.Int4Head(rows)
    integers = head.rows() / head.scale.float()[:, None]
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
    assert integers.abs().max() <= 7.001
    plain = rows.abs().amax(1, keepdim=True) / 7
    naive = (rows / plain).round() * plain
    error, expected = (head.rows() - rows).square().sum(1), (naive - rows).square().sum(1)
    assert (error <= expected * 1.01).all()
    assert error.sum() < 0.99 * expected.sum()
    assert head.packed.dtype == torch.uint8


def test_int4_keeps_what_it_can_represent():
    integers = torch.randint(-7, 8, (9, WIDTH), generator=torch.Generator().manual_seed(0)).float()
    integers[:, 0] = 7
    torch.testing.assert_close(heads.Int4Head(integers * 0.25).rows(), integers * 0.25)
    assert torch.equal(heads.Int4Head(torch.zeros(3, 4)).rows(), torch.zeros(3, 4))


def test_refusals(rows, counts):
    with pytest.raises(ValueError, match="rank 1 needs"):
        heads.largest_rank(WIDTH, VOCABULARY, 100)
    with pytest.raises(ValueError, match="no adaptive softmax"):
        heads.best_adaptive(rows, counts, 40, rows, torch.zeros(VOCABULARY, dtype=torch.int64))
    with pytest.raises(ValueError, match="even"):
        heads.Int4Head(torch.zeros(2, 3))
    assert math.isfinite(heads.Int4Head(rows).loss(rows, torch.zeros(VOCABULARY, dtype=torch.int64)).item())
