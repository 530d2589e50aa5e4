import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from reference.testbeds import word_lm
from reference.testbeds.training import train
from reference.testbeds.words import Words, words


@pytest.fixture(scope="module")
def small():
    return words(512, byte_cap=300_000)


@pytest.fixture(params=word_lm.KINDS)
def model(request):
    return word_lm.WordLM(request.param, 512, seed=0, width=16, context=3)


def test_shapes_and_the_loss_is_the_mean_cross_entropy(model, small):
    windows = word_lm.windows(small.train, 8, 5)
    assert model.hidden(windows[:, :-1]).shape == (5, 8, 16)
    log_probabilities = model(windows[:, :-1])
    assert log_probabilities.shape == (5, 8, 512)
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(5, 8))
    expected = -log_probabilities.gather(2, windows[:, 1:, None]).mean()
    torch.testing.assert_close(model.loss(windows), expected)


def test_an_untrained_model_knows_nothing(model, small):
    assert abs(model.loss(word_lm.windows(small.train, 8, 5)).item() - math.log(512)) < 0.1


def test_the_future_is_not_seen(model, small):
    tokens = word_lm.windows(small.train, 10, 4)
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 512
    before, after = model.hidden(tokens), model.hidden(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_ngram_sees_exactly_its_context():
    model = word_lm.WordLM("ngram", 50, seed=1, width=8, context=3)
    tokens = torch.randint(50, (1, 9), generator=torch.Generator().manual_seed(0))
    for back in range(5):
        changed = tokens.clone()
        changed[0, 8 - back] = (changed[0, 8 - back] + 1) % 50
        same = torch.equal(model.hidden(tokens)[0, 8], model.hidden(changed)[0, 8])
        assert same == (back >= 3)
    expected = torch.tanh(model.layer(torch.cat([model.embedding(tokens[0, 8 - i]) for i in range(3)])))
    torch.testing.assert_close(model.hidden(tokens)[0, 8], expected)


def test_initial_values_depend_on_the_seed_alone(model):
    again = word_lm.WordLM(model.kind, 512, seed=0, width=16, context=3)
    other = word_lm.WordLM(model.kind, 512, seed=1, width=16, context=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.embedding.weight, other.embedding.weight)


def test_another_head_can_take_the_place(model, small):
    class Uniform(torch.nn.Module):
        def loss(self, hidden, targets):
            return cross_entropy(self.log_probabilities(hidden), targets)

        def log_probabilities(self, hidden):
            return hidden.new_full((len(hidden), 512), -math.log(512))

    model.head = Uniform()
    tokens = word_lm.windows(small.train, 8, 3)
    assert model.loss(tokens).item() == pytest.approx(math.log(512), rel=1e-5)
    assert model(tokens).shape == (3, 9, 512)
    assert not [name for name, _ in model.named_parameters() if name.startswith("head")]


def test_a_few_steps_teach_something(model, small):
    batches = word_lm.word_batches(small, 16, 16, seed=0, validation_windows=16)
    before = model.loss(batches.validation[0][0]).item()
    history = train(model, batches, torch.optim.AdamW(model.parameters(), lr=1e-2), None, 30)
    assert history.val_loss < before - 0.8
    assert history.data_digest == small.digest


def test_batches_are_windows_of_the_training_side(small):
    batches = word_lm.word_batches(small, 4, 8, seed=3)
    first, again = next(iter(batches))[0], next(iter(batches))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, next(iter(word_lm.word_batches(small, 4, 8, seed=4)))[0])
    rows = {tuple(row) for row in small.train.unfold(0, 9, 1).tolist()}
    for batch in itertools.islice(batches, 5):
        assert all(tuple(row) in rows for row in batch[0].tolist())


def test_windows_do_not_overlap_and_are_spread():
    tokens = torch.arange(100)
    assert word_lm.windows(tokens, 9).flatten().tolist() == list(range(100))
    assert word_lm.windows(tokens, 9, 2)[:, 0].tolist() == [0, 50]
    with pytest.raises(ValueError, match="does not fit"):
        word_lm.windows(tokens, 100)


def test_a_corpus_that_is_too_short_is_refused(small):
    short = dataclasses.replace(small, train=small.train[:5])
    assert isinstance(short, Words)
    with pytest.raises(ValueError, match="does not fit"):
        word_lm.word_batches(short, 2, 5, seed=0)


def test_hidden_and_targets_line_up(model, small):
    windows = word_lm.windows(small.validation, 6, 7)
    hidden, targets = word_lm.hidden_and_targets(model, windows, batch=3)
    assert hidden.shape == (42, 16)
    assert targets[5] == windows[0, 6]
    torch.testing.assert_close(hidden[6:12], model.hidden(windows[1:2, :-1])[0])
    torch.testing.assert_close(model.head.loss(hidden, targets), model.loss(windows))
    assert model.training


def test_refusals():
    with pytest.raises(ValueError, match="kind must be"):
        word_lm.WordLM("lstm", 10, 0)
    with pytest.raises(ValueError, match="context must be"):
        word_lm.WordLM("ngram", 10, 0, context=0)
