import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import speculative, speculative_numba
from reference.testbeds import char_lm, decoding


class Table:
    """A model of which the next letter depends on the last one alone; counts how often it is asked."""

    context = 64

    def __init__(self, p):
        self.logits, self.calls = p.log(), 0

    def extend(self, tokens, starts):
        self.calls += 1
        return self.logits[tokens]


def tables(letters, seed):
    random = torch.Generator().manual_seed(seed)
    return torch.softmax(1.5 * torch.randn(2, letters, letters, generator=random), -1)


def model(seed, layers=1):
    made = char_lm.make("S", seed, context=48, width=16, layers=layers).eval()
    torch.nn.init.normal_(made.head.weight, 0.0, 1.0, generator=torch.Generator().manual_seed(seed))
    return made


distributions = st.integers(0, 10_000).map(
    lambda seed: torch.softmax(2 * torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(seed)).double(), -1))


@given(distributions)
@settings(deadline=None, max_examples=50)
def test_draft_and_residual_together_are_the_target(pair):
    p, q = pair
    accepted = torch.minimum(p, q)
    rejected = 1 - speculative.acceptance(p, q)
    torch.testing.assert_close(accepted + rejected[:, None] * speculative.residual(p, q), p)
    torch.testing.assert_close(speculative.acceptance(p, q), 1 - speculative.total_variation(p, q))


def test_residual_of_equal_distributions_is_the_target():
    p = torch.softmax(torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), -1)
    assert torch.equal(speculative.residual(p, p), p)


@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([3, 511, 512, 513, 1300]))
@settings(deadline=None, max_examples=40)
def test_numba_judges_as_torch_does(seed, gamma, letters):
    random = torch.Generator().manual_seed(seed)
    p = torch.softmax(torch.randn(5, gamma + 1, letters, generator=random), -1)
    q = 0.6 * p[:, :gamma] + 0.4 * torch.softmax(torch.randn(5, gamma, letters, generator=random), -1)
    q[0] = p[0, :gamma]
    drafts = torch.multinomial(q.flatten(0, 1), 1, generator=random).view(5, gamma)
    accept, resample = torch.rand(5, gamma, generator=random), torch.rand(5, generator=random)
    count, following = np.empty(5, np.int64), np.empty(5, np.int64)
    speculative_numba.verify(*(part.numpy() for part in (p, q, drafts, accept, resample)), count, following,
                             speculative_numba.scratch(letters))
    expected = speculative.verify(p.double(), q.double(), drafts, accept.double(), resample.double())
    assert count.tolist() == expected[0].tolist()
    for row in range(5):
        after = p[row, count[row]].double()
        proposed = q[row, count[row]].double() if count[row] < gamma else torch.zeros(letters)
        cumulated = speculative.residual(after, proposed).cumsum(-1)
        below = cumulated[following[row] - 1] if following[row] else 0.0
        assert below - 1e-4 <= resample[row] * cumulated[-1] <= cumulated[following[row]] + 1e-4


def test_written_texts_follow_the_target():
    p, q = tables(3, 1)
    random, counts, runs = torch.Generator().manual_seed(2), np.zeros((3, 3, 3)), 1500
    for _ in range(runs):
        made = speculative.speculate(Table(p), Table(q), torch.tensor([0]), 3, 2, 1.0, random)
        counts[tuple(made.tokens.tolist())] += 1
    expected = runs * (p[0][:, None, None] * p[:, :, None] * p[None]).numpy()
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < 62, statistic  # 26 degrees of freedom: passed once in 10,000


def test_measured_block_efficiency_is_the_expected_one():
    p, q = tables(4, 3)
    random, gamma, time = torch.Generator().manual_seed(4), 3, 40
    made = [speculative.speculate(Table(p), Table(q), torch.tensor([0]), time, gamma, 1.0, random) for _ in range(60)]
    texts = torch.stack([item.tokens for item in made])
    before = torch.cat([torch.zeros(60, 1, dtype=torch.int64), texts[:, :-1]], 1)
    kept = (q[before, texts] / p[before, texts]).clamp_max(1).double().numpy()
    calls = speculative.expected_blocks(kept, np.full(60, time), gamma)
    measured = np.array([item.calls for item in made])
    assert abs((measured - calls).mean()) < 4 * (measured - calls).std() / np.sqrt(60)


@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_greedy_texts_are_the_targets_own(gamma):
    target, draft, prompt = model(0, 2), model(1), torch.tensor([72, 101])
    made = speculative.speculate(decoding.reader(target, 1), decoding.reader(draft, 1), prompt, 20, gamma)
    alone = decoding.generate([decoding.reader(target, 1)], prompt[None], torch.tensor([2]), 20, end=None)
    assert torch.equal(made.tokens, alone.tokens[0])
    assert len(made.accepted) == made.calls
    assert sum(made.accepted) + made.calls == 20


def test_every_reader_reads_what_was_written_and_nothing_twice():
    p, q = tables(4, 5)
    target, draft = Table(p), Table(q)
    made = speculative.speculate(target, draft, torch.tensor([0]), 24, 3, 1.0, torch.Generator().manual_seed(0))
    assert target.calls == made.calls
    assert draft.calls <= 3 * made.calls


def test_texts_stop_behind_their_end():
    p, q = tables(3, 6)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        made = speculative.speculate(Table(p), Table(q), torch.tensor([0]), 30, 3, 1.0, random, end=2)
        written = made.tokens.tolist()
        assert 2 not in written[:-1]
        assert written[-1] == 2 or len(written) == 30


def test_gamma_must_be_positive():
    with pytest.raises(ValueError, match="gamma"):
        speculative.speculate(Table(tables(3, 0)[0]), Table(tables(3, 0)[1]), torch.tensor([0]), 3, 0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 6))
@settings(deadline=None)
def test_block_efficiency_lies_between_one_and_gamma_and_one(kept, gamma):
    length = np.array([len(kept)])
    found = speculative.block_efficiency(np.array([kept]), length, gamma)
    assert 1 - 1e-9 <= found <= gamma + 1 + 1e-9
    more = speculative.block_efficiency(np.minimum(1, np.array([kept]) + 0.1), length, gamma)
    assert more >= found - 1e-9


def test_texts_shorter_than_the_array_do_not_see_what_lies_behind():
    kept = np.random.default_rng(0).random((2, 12))
    other = kept.copy()
    other[:, 7:] = 0.5
    lengths = np.array([7, 7])
    assert np.allclose(*(speculative.expected_blocks(part, lengths, 3) for part in (kept, other)))


def test_memory_bound_speedup():
    assert speculative.memory_bound_speedup(3.0, 0.1, 5) == pytest.approx(2.0)


@pytest.mark.peer
def test_transformers_accepts_as_many():
    utils = pytest.importorskip("transformers.generation.utils")
    if not hasattr(utils, "_speculative_sampling"):
        pytest.skip("this version of transformers keeps its speculative sampling elsewhere")
    p, q = tables(6, 7)
    random, theirs, ours = torch.Generator().manual_seed(0), [], []
    state = torch.get_rng_state()
    torch.manual_seed(0)
    for _ in range(300):
        drafts = torch.multinomial(q[0], 2, replacement=True, generator=random)
        rows = torch.stack([torch.tensor(0), drafts[0], drafts[1]])
        _, matches = utils._speculative_sampling(drafts[None], q[rows[:2]].log()[None], 2, p[rows].log()[None])
        theirs.append(int(matches))
        uniform = torch.rand(1, 3, generator=random)
        ours.append(int(speculative.verify(p[rows][None], q[rows[:2]][None], drafts[None], uniform[:, :2],
                                           uniform[:, 2])[0]))
    torch.set_rng_state(state)
    assert np.mean(theirs) == pytest.approx(np.mean(ours), abs=0.25)
