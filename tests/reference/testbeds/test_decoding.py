import pytest
import torch
from torch import nn

from reference.testbeds import char_lm, decoding

PROMPTS = ["COPY:abc=", "a", "The quick brown fox"]


@pytest.fixture
def model():
    made = char_lm.make("S", 1, context=40, width=32)
    nn.init.normal_(made.head.weight, 0.0, 1.0, generator=torch.Generator().manual_seed(0))
    return made.eval()


def test_both_readers_agree_with_the_model(model):
    tokens = torch.randint(128, (3, 30), generator=torch.Generator().manual_seed(1))
    expected = model(tokens).detach()
    for made in (decoding.CachedReader(model, 3), decoding.RereadingReader(model, 3)):
        parts, start = [], 0
        for count in (12, 1, 1, 7, 9):
            part = tokens[:, start : start + count]
            parts.append(made.extend(part, torch.full((3,), start)))
            start += count
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-4)


def test_going_back_forgets_what_was_read(model):
    tokens = torch.randint(128, (2, 20), generator=torch.Generator().manual_seed(2))
    for kind in (decoding.CachedReader, decoding.RereadingReader):
        made = kind(model, 2)
        made.extend(tokens, torch.zeros(2, dtype=torch.int64))
        starts = torch.tensor([5, 11])
        again = made.extend(torch.full((2, 1), 7), starts)[:, 0]
        for row, start in enumerate(starts.tolist()):
            text = torch.cat([tokens[row, :start], torch.tensor([7])])
            torch.testing.assert_close(again[row], model(text[None])[0, -1].detach(), rtol=1e-4, atol=1e-4)


def test_a_changed_model_is_read_anew(model):
    assert isinstance(decoding.reader(model, 1), decoding.CachedReader)
    model.blocks[0].attention = nn.Identity()
    assert isinstance(decoding.reader(model, 1), decoding.RereadingReader)


def test_greedy_rows_do_not_depend_on_their_neighbours(model):
    tokens, lengths = decoding.padded(PROMPTS)
    together = decoding.generate([decoding.reader(model, 3)], tokens, lengths, 12, end=None)
    for row, prompt in enumerate(PROMPTS):
        text = list(prompt.encode())
        for step in range(12):
            assert together.tokens[row, step] == model(torch.tensor([text]))[0, -1].argmax()
            text.append(int(together.tokens[row, step]))
    assert together.counts.tolist() == [12, 12, 12]


def test_rows_stop_at_their_end(model):
    free = decoding.generate([decoding.reader(model, 3)], *decoding.padded(PROMPTS), 12, end=None).tokens
    end = int(free[0, 3])
    stopped = decoding.generate([decoding.reader(model, 3)], *decoding.padded(PROMPTS), 12, end=end)
    for row in range(3):
        places = (free[row] == end).nonzero()
        count = int(places[0]) + 1 if len(places) else 12
        assert stopped.counts[row] == count
        assert torch.equal(stopped.tokens[row, :count], free[row, :count])
        assert (stopped.tokens[row, count:] == end).all()
        assert len(stopped.texts()[row]) == count


def test_two_readers_are_combined(model):
    other = char_lm.make("S", 2, context=40, width=32).eval()
    tokens, lengths = decoding.padded(PROMPTS)
    readers = [decoding.reader(model, 3), decoding.reader(other, 3)]
    first = decoding.generate(readers, tokens, lengths, 8, combine=lambda logits: logits[0] + 0 * logits[1], end=None)
    alone = decoding.generate([decoding.reader(model, 3)], tokens, lengths, 8, end=None)
    assert torch.equal(first.tokens, alone.tokens)
    mixed = decoding.generate(readers, tokens, lengths, 8, combine=lambda logits: logits[0] + 99 * logits[1], end=None)
    assert not torch.equal(mixed.tokens, alone.tokens)


def test_what_does_not_fit_is_refused(model):
    tokens, lengths = decoding.padded(PROMPTS)
    with pytest.raises(ValueError, match="context of 40"):
        decoding.generate([decoding.reader(model, 3)], tokens, lengths, 23)
    with pytest.raises(ValueError, match="empty prompt"):
        decoding.padded(["a", ""])


def test_samples_follow_the_probabilities():
    p = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0]).repeat(20_000, 1)
    counts = torch.bincount(decoding.sample(p, torch.Generator().manual_seed(0)), minlength=6) / 20_000
    torch.testing.assert_close(counts, p[0], rtol=0, atol=0.015)
    assert counts[0] == counts[2] == counts[5] == 0


def test_temperature_and_top_p():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    torch.testing.assert_close(decoding.probabilities(logits), logits.exp())
    assert decoding.probabilities(logits, 0.0).tolist() == [1, 0, 0, 0]
    torch.testing.assert_close(decoding.probabilities(logits, top_p=0.75), torch.tensor([5 / 8, 3 / 8, 0, 0]))
    assert decoding.probabilities(logits, top_p=0.01).tolist() == [1, 0, 0, 0]
    squared = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    torch.testing.assert_close(decoding.probabilities(logits, 0.5), squared / squared.sum())


def test_sampling_repeats_itself_and_leaves_the_global_state_alone(model):
    tokens, lengths = decoding.padded(PROMPTS)
    runs = [decoding.generate([decoding.reader(model, 3)], tokens, lengths, 10, temperature=1.0, end=None,
                              random=torch.Generator().manual_seed(5)).tokens for _ in range(2)]
    assert torch.equal(*runs)


def test_completing_texts(model):
    answers = decoding.complete(model, PROMPTS, 6)
    assert len(answers) == 3
    assert all(len(answer) == 6 or answer.endswith("\n") for answer in answers)
