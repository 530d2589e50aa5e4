import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import vq_logits as vq
from reference.methods.softmax import vq_logits_numba, vq_logits_words
from reference.testbeds import word_lm
from reference.testbeds.words import words


def generator(seed):
    return torch.Generator().manual_seed(seed)


@st.composite
def problems(draw):
    vocabulary = draw(st.integers(2, 30))
    count = draw(st.integers(1, vocabulary))
    seed, width = draw(st.integers(0, 1000)), draw(st.integers(1, 6))
    of = torch.randint(count, (vocabulary,), generator=generator(seed))
    book = torch.randn(count, width, generator=generator(seed + 1), dtype=torch.float64)
    hidden = torch.randn(7, width, generator=generator(seed + 2), dtype=torch.float64)
    return vq.VQHead(book, vq.Codes(of, count), bias=draw(st.booleans())), hidden, seed


@settings(deadline=None, max_examples=60)
@given(problems())
def test_code_level_is_the_softmax_over_scattered_logits(problem):
    head, hidden, seed = problem
    if head.bias is not None:
        head.bias.data.normal_(std=3.0, generator=generator(seed + 3))
    targets = torch.randint(len(head.code_of), (7,), generator=generator(seed + 4))
    torch.testing.assert_close(head.loss(hidden, targets), head.scattered_loss(hidden, targets), rtol=0, atol=1e-9)
    expected = torch.log_softmax(head.scattered(hidden), 1)
    torch.testing.assert_close(head.log_probabilities(hidden), expected, rtol=0, atol=1e-9)
    analytic, plain = (torch.autograd.grad(loss(hidden, targets), list(head.parameters()))
                       for loss in (head.loss, head.scattered_loss))
    for mine, right in zip(analytic, plain, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-9)
        assert torch.isfinite(mine).all()


@settings(deadline=None, max_examples=60)
@given(problems())
def test_the_loss_is_that_over_codes_and_log_n(problem):
    head, hidden, seed = problem
    if head.bias is not None:
        return
    targets = torch.randint(len(head.code_of), (7,), generator=generator(seed))
    codes = head.code_of[targets]
    over_codes = torch.log_softmax(hidden @ head.codebook.T + head.log_members(), 1).gather(1, codes[:, None]).mean()
    within = head.codes.sizes()[codes].double().log().mean()
    torch.testing.assert_close(head.loss(hidden, targets), within - over_codes, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 99))
def test_maps_use_every_code_and_halve_evenly(count, more, seed):
    vocabulary = count + more
    counts = torch.randint(0, 50, (vocabulary,), generator=generator(seed)).sort(descending=True).values
    for codes in (vq.random_codes(vocabulary, count, generator(seed)), vq.frequency_codes(counts, count)):
        sizes = codes.sizes()
        assert sizes.sum() == vocabulary
        assert sizes.max() - sizes.min() <= 1
    mass = vq.equal_mass_codes(counts, count)
    assert (mass.sizes() > 0).all()
    assert (mass.of.diff() >= 0).all()


def test_frequency_and_mass_maps_by_hand():
    counts = torch.tensor([2, 50, 1, 30, 10, 7])
    assert vq.frequency_codes(counts, 3).of.tolist() == [2, 0, 2, 0, 1, 1]
    assert vq.equal_mass_codes(counts, 3).of.tolist() == [2, 0, 2, 1, 2, 2]
    assert vq.equal_mass_codes(counts, 6).of.tolist() == [4, 0, 5, 1, 2, 3]


def test_kmeans_finds_separate_groups():
    centres = 10 * torch.randn(5, 3, generator=generator(0))
    label = torch.arange(50) % 5
    rows = centres[label] + 0.01 * torch.randn(50, 3, generator=generator(1))
    codes = vq.kmeans_codes(rows, 5, seed=2**40 + 3)
    assert all(len(codes.of[label == group].unique()) == 1 for group in range(5))
    torch.testing.assert_close(vq.mean_rows(rows, codes)[codes.of], centres[label], rtol=0, atol=0.02)


def test_mean_rows_by_weight():
    rows, codes = torch.tensor([[1.0], [3.0], [7.0]]), vq.Codes(torch.tensor([0, 0, 2]), 3)
    assert vq.mean_rows(rows, codes).flatten().tolist() == [2.0, 0.0, 7.0]
    assert vq.mean_rows(rows, codes, torch.tensor([3, 1, 1])).flatten().tolist() == [1.5, 0.0, 7.0]


@pytest.mark.parametrize(("budget", "vocabulary"), [(264 * 1024, 4096), (24_000, 4096), (3000, 300), (10**9, 70)])
def test_the_largest_count_fits_and_one_more_does_not(budget, vocabulary):
    def size(count):
        return 4 * 128 * count + vq.Codes(torch.zeros(vocabulary, dtype=torch.int64), count).map_bytes()

    count = vq.largest_count(128, vocabulary, budget)
    assert size(count) <= budget
    assert count == vocabulary or size(count + 1) > budget


def test_bytes_count_the_map():
    head = vq.VQHead(torch.zeros(41, 128), vq.random_codes(4096, 41, generator(0)))
    assert head.packed_bytes == 41 * 128 * 4 + 4096 * 6 / 8
    assert vq.VQHead(torch.zeros(41, 128), head.codes, bias=True).packed_bytes == head.packed_bytes + 4 * 4096


def test_excess_by_hand():
    conditional = torch.tensor([[0.5, 0.5, 0.0], [0.8, 0.0, 0.2]], dtype=torch.float64)
    contexts, codes = torch.tensor([0.25, 0.75], dtype=torch.float64), vq.Codes(torch.tensor([0, 0, 1]), 2)
    log2 = np.log(2)
    # context 0: the pair is even, so nothing is lost; context 1: word 0 is sure within its code
    assert vq.excess_over_bayes(conditional, contexts, codes) == pytest.approx(0.75 * 0.8 * log2)
    unigram = contexts @ conditional
    p, q = (unigram[:2] / unigram[:2].sum()).tolist()
    floor = unigram[:2].sum().item() * (log2 + p * np.log(p) + q * np.log(q))
    assert vq.unigram_floor(unigram, codes) == pytest.approx(floor)
    assert floor < 0.75 * 0.8 * log2


def test_reassigning_moves_words_to_the_code_of_their_contexts():
    codes = vq.Codes(torch.tensor([0, 1, 0, 1, 0, 1]), 2)
    head = vq.LearnedVQHead(4 * torch.eye(2), codes)
    hidden, targets = torch.eye(2)[[0, 0, 0, 1, 1, 1] * 10], torch.tensor([0, 1, 2, 3, 4, 5] * 10)
    head.eval()
    before = head.loss(hidden, targets)
    assert head.reassign() == 0  # nothing was gathered in evaluation mode
    head.train()
    head.loss(hidden, targets)
    assert head.reassign(share=1.0) == 2
    assert head.code_of.tolist() == [0, 0, 0, 1, 1, 1]
    assert head.loss(hidden, targets) < before
    assert head.reassign(share=1.0) == 0


def test_reassigning_is_limited_and_leaves_rare_words():
    head = vq.LearnedVQHead(torch.randn(4, 8, generator=generator(0)), vq.random_codes(100, 4, generator(1)))
    hidden, targets = torch.randn(300, 8, generator=generator(2)), torch.randint(50, (300,), generator=generator(3))
    head.loss(hidden, targets)
    before = head.code_of.clone()
    assert 0 < head.reassign(share=0.05) <= 5
    head.loss(hidden, targets)
    head.reassign(share=1.0)
    assert torch.equal(head.code_of[50:], before[50:])


def test_gains_are_derivatives_of_the_log_likelihood():
    """The first-order change of the log likelihood, against moving a word whose probability is small."""
    vocabulary, width = 400, 5
    codes = vq.random_codes(vocabulary, 6, generator(0))
    head = vq.LearnedVQHead(torch.randn(6, width, generator=generator(1), dtype=torch.float64), codes)
    hidden = torch.randn(2000, width, generator=generator(2), dtype=torch.float64)
    targets = torch.randint(vocabulary, (2000,), generator=generator(3))
    before = -2000 * head.loss(hidden, targets).item()
    scores = (head.context_sums @ head.codebook.T - head.expected).detach()
    for word in range(5):
        for code in range(6):
            moved = codes.of.clone()
            moved[word] = code
            after = -2000 * vq.VQHead(head.codebook.detach(), vq.Codes(moved, 6)).loss(hidden, targets).item()
            gain = (scores[word, code] - scores[word, codes.of[word]]).item()
            assert after - before == pytest.approx(gain, abs=0.15)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 200), st.integers(1, 20), st.integers(0, 99), st.sampled_from([1, 2]))
def test_numba_scatter(rows, vocabulary, count, seed, threads):
    random = np.random.default_rng(seed)
    logits, of = random.standard_normal((rows, count), dtype=np.float32), random.integers(count, size=vocabulary)
    out = np.full((rows, vocabulary), np.nan, np.float32)
    vq_logits_numba.scatter(logits, vq_logits_numba.compact_map(of, count), out, threads)
    assert np.array_equal(out, logits[:, of])


def test_the_map_takes_the_smallest_type():
    assert vq_logits_numba.compact_map(np.array([0, 65535]), 65536).dtype == np.uint16
    assert vq_logits_numba.compact_map(np.array([0, 65536]), 65537).dtype == np.int32


@pytest.fixture(scope="module")
def setting():
    return vq_logits_words.Setting(words(256, byte_cap=300_000), 1, 2, width=16)


@pytest.fixture(scope="module")
def weights(setting):
    return vq_logits_words.pretrained(setting, 20)


@pytest.mark.parametrize("arm", ["random", "frequency", "equal_mass", "kmeans", "learned", "kmeans_bias"])
def test_every_head_learns_in_the_pretrained_model(arm, setting, weights):
    model = vq_logits_words.loaded(setting, weights)
    rows = model.head.weight.detach()
    mapping = arm if arm in vq.MAPPINGS else "kmeans"
    codes = vq_logits_words.codes_for(mapping, rows, setting.text.counts, 20, seed=0)
    model.head = vq_logits_words.vq_head(arm, rows, codes, setting.text.counts)
    before = model.loss(setting.batches(2).validation[0][0]).item()
    history = vq_logits_words.train_on(setting, model, 0.01, 25)
    assert history.val_loss < before
    found = vq_logits_words.scores(model, word_lm.windows(setting.text.test, 32, 8))
    shared = vq_logits_words.code_scores(model.head, setting.text.counts, setting.text.test)
    assert found["ppl"] == pytest.approx(np.exp(found["ce"]), rel=1e-5)
    assert 0 < found["top1"] < 1
    assert 1 <= shared["used_codes"] <= 20
    assert arm == "kmeans_bias" or shared["unigram_floor"] > 0


@pytest.mark.parametrize("arm", ["low_rank", "adaptive", "int4"])
def test_every_rival_fits_and_starts_near_the_full_head(arm, setting, weights):
    model = vq_logits_words.loaded(setting, weights)
    windows = word_lm.windows(setting.text.validation, 32, 8)
    before = vq_logits_words.scores(model, windows)["ce"]
    budget = 256 * (8 + 2)
    model.head = vq_logits_words.rival_head(arm, model, setting, budget)
    assert vq_logits_words.scores(model, windows)["ce"] < before + 0.5


def test_ties_are_broken_at_random(setting, weights):
    model = vq_logits_words.loaded(setting, weights)
    model.head = vq.VQHead(torch.zeros(1, 16), vq.Codes(torch.zeros(256, dtype=torch.int64), 1))
    found = vq_logits_words.scores(model, word_lm.windows(setting.text.test, 32, 4))
    assert found["top1"] == pytest.approx(1 / 256)
    assert found["ce"] == pytest.approx(np.log(256), rel=1e-5)


def test_refusals(setting):
    with pytest.raises(ValueError, match="codes must lie in"):
        vq.Codes(torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match="need as many rows"):
        vq.VQHead(torch.zeros(2, 4), vq.Codes(torch.tensor([0, 1]), 3))
    with pytest.raises(ValueError, match="not even one code"):
        vq.largest_count(128, 4096, 100)
    with pytest.raises(KeyError, match="no mapping"):
        vq_logits_words.codes_for("alphabet", torch.zeros(2, 2), torch.zeros(2), 1, 0)
    with pytest.raises(KeyError, match="no rival"):
        vq_logits_words.rival_head("hash", setting.model(), setting, 100)
