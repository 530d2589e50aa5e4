import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import lssa_softplus_attention as method
from reference.methods.softmax import lssa_softplus_attention_language as language
from reference.methods.softmax.lssa_softplus_attention_numba import lssar_attention
from reference.testbeds import char_lm, text

SEEDS = st.integers(0, 2**32)


pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(time, width=8, seed=0, scale=1.0, heads=2):
    random = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(heads, time, width, generator=random, dtype=torch.float64) for _ in range(3)]


@given(seed=SEEDS, time=st.integers(1, 40), scale=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_rows_are_causal_distributions(seed, time, scale):
    q, k, _ = drawn(time, seed=seed, scale=scale)
    for name in ("softmax", "alibi", "lssa", "lssar", "lssar_p3", "softmax_reweighted"):
        rows = method.ROWS[name](q, k)
        assert (rows >= 0).all(), name
        assert (rows.triu(1) == 0).all(), name
        assert torch.allclose(rows.sum(-1), torch.ones(2, time, dtype=torch.float64), atol=1e-5), name


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_only_directions_matter_to_stage_one(seed, scale):
    q, k, _ = drawn(20, seed=seed)
    assert torch.allclose(method.lssa_rows(scale * q, k / scale), method.lssa_rows(q, k), rtol=1e-9)


def test_scores_grow_with_the_rows_own_count():
    """A text that is longer leaves earlier rows as they are: N_i is the row's count and not the length."""
    q, k, _ = drawn(50, seed=3)
    for name in ("lssa", "lssar"):
        assert torch.allclose(method.ROWS[name](q, k)[:, :30, :30], method.ROWS[name](q[:, :30], k[:, :30])), name
    d, i = 8, 29
    cosine = torch.nn.functional.normalize(q, dim=-1)[0, i] @ torch.nn.functional.normalize(k, dim=-1)[0].mT
    expected = torch.log1p(torch.exp(math.log(d) * math.log(i + 1) * cosine[: i + 1]))
    assert torch.allclose(method.lssa_rows(q, k)[0, i, : i + 1], expected / expected.sum())


@given(seed=SEEDS, power=st.integers(1, 30), factor=st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_dividing_rows_by_their_maximum_changes_nothing(seed, power, factor):
    raised = torch.rand(5, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scaled = (factor * raised) ** power
    divided = (raised / raised.amax(-1, keepdim=True)) ** power
    assert torch.allclose(scaled / scaled.sum(-1, keepdim=True), divided / divided.sum(-1, keepdim=True), rtol=1e-9)


def test_stage_two_keeps_what_is_above_the_mean():
    weights = method.lssa_rows(*drawn(30)[:2])
    counts = method.visible_counts(30, weights)
    sharp = method.reweight(weights)
    assert ((sharp > 0) == (weights * counts > 1.0))[:, 3:].all()
    assert ((sharp > 0) == (weights > 0))[:, :3].all()
    entropy = [-(rows.clamp_min(1e-300).log() * rows).sum(-1)[:, 3:] for rows in (weights, sharp)]
    assert (entropy[1] < entropy[0]).all()


def test_a_large_power_takes_the_largest():
    weights = method.lssa_rows(*drawn(40, seed=1)[:2])
    sharp = method.reweight(weights, power=20_000)[:, 3:]
    assert torch.equal(sharp.argmax(-1), weights[:, 3:].argmax(-1))
    assert (sharp.amax(-1) > 0.9).double().mean() > 0.95


def test_large_powers_would_overflow_without_the_division():
    weights = torch.zeros(200, 200)
    weights[:, 0] = 1.0
    assert torch.isinf((weights * 200 - 1).relu() ** 17).any()
    assert torch.isfinite(method.reweight(weights, power=17)).all()


def test_gradients_are_those_of_the_undivided_form():
    q, k, v = drawn(12, seed=5)
    q.requires_grad_()

    def undivided(weights, power=3):
        counts = method.visible_counts(12, weights)
        raised = (weights * counts - (counts > 3).double()).relu() ** power
        return raised / raised.sum(-1, keepdim=True)

    gradients = [torch.autograd.grad((stage(method.lssa_rows(q, k)) @ v).square().sum(), q)[0]
                 for stage in (undivided, lambda weights: method.reweight(weights, 3))]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-4)


def test_log_n_is_softmax_at_its_length_and_sharper_beyond():
    q, k, _ = (part[None].float() for part in drawn(100))
    rows = method.LogNSoftmax(heads=2, length=40)(q, k)
    plain = method.softmax_rows(q, k)
    assert torch.allclose(rows[:, :, 39], plain[:, :, 39], atol=1e-6)
    assert (rows[:, :, 60:].amax(-1) > plain[:, :, 60:].amax(-1)).all()


def test_alibi_favours_what_is_near_and_more_so_in_the_first_head():
    zeros = torch.zeros(2, 30, 4)
    rows = method.alibi_rows(zeros, zeros)
    assert (rows[:, 29].diff(dim=-1) > 0).all()
    for head, slope in enumerate((2.0**-4, 2.0**-8)):
        assert (rows[head, 29, 29] / rows[head, 29, 28]).log().item() == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("variant", method.VARIANTS)
def test_models_are_causal_and_share_their_initial_values(variant):
    plain, model = char_lm.make("S", 0, heads=2, context=48), language.language_model(variant, 0)
    shared = {name for name, _ in plain.named_parameters()} - {"position_embedding.weight"}
    for name, parameter in model.named_parameters():
        if name in shared:
            assert torch.equal(parameter, plain.get_parameter(name)), name
    assert not model.position_embedding.weight.any()
    assert not model.position_embedding.weight.requires_grad
    codes = torch.randint(128, (2, 40), generator=torch.Generator().manual_seed(0))
    changed = codes.clone()
    changed[:, 25:] = 7
    assert torch.allclose(model(codes)[:, :25], model(changed)[:, :25], atol=1e-5)
    assert model(codes).isfinite().all()


def test_softmax_with_rope_sees_positions_and_unknown_variants_are_refused():
    model = language.language_model("softmax", 0)
    codes = torch.tensor([[1, 2, 3, 4, 5], [2, 1, 3, 4, 5]])
    assert not torch.allclose(model(codes)[0, -1], model(codes)[1, -1], atol=1e-5)
    with pytest.raises(KeyError, match="no attention 'linear'"):
        language.language_model("linear", 0)


def test_windows_of_every_length_predict_the_same_characters():
    codes = torch.arange(2000) % 128
    for length in (64, 128, 512):
        rows = torch.cat([batch for (batch,) in language.windows(codes, length, 1024)])
        assert rows.shape == (1024 // length, length + 1)
        assert torch.equal(rows[:, 1:].flatten(), codes[1:1025])


def test_losses_are_capped_at_chance():
    class Broken(torch.nn.Module):
        value = math.nan

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def loss(self, codes):
            return torch.tensor(self.value)

    model, codes = Broken(), torch.zeros(1025, dtype=torch.uint8)
    assert set(language.nats_by_length(model, codes, 1024).values()) == {language.CHANCE_NATS}
    model.value = 100.0
    assert language.nats_by_length(model, codes, 1024, (1, 2)) == {1: language.CHANCE_NATS, 2: language.CHANCE_NATS}
    model.value = 2.5
    assert language.nats_by_length(model, codes, 1024, (4,)) == {4: 2.5}


def test_rates_are_chosen_on_the_end_of_the_text():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def loss(self, codes):
            return codes[:, 1:].double().mean()

    codes = torch.cat([torch.zeros(1025), torch.ones(1024)]).to(torch.uint8)
    assert language.nats_by_length(Counting(), codes, 1024, (1,)) == {1: 0.0}
    assert language.tuning_nats(Counting(), codes, 1024) == 1.0


@given(seed=SEEDS, length=st.integers(8, 100))
@settings(max_examples=20, deadline=None)
def test_passkeys_hide_their_answer_once(seed, length):
    codes = language.passkeys(20, length, torch.Generator().manual_seed(seed))
    assert codes.shape == (20, length + 1)
    for row in codes.tolist():
        string = bytes(row).decode("ascii")
        assert string[-1 - language.KEY_DIGITS] == "?"
        assert string.count("#") == 1
        key = string[string.index("#") + 1 :][: language.KEY_DIGITS]
        assert key == string[-language.KEY_DIGITS :]
        assert key.isdigit()
        assert sum(c.isdigit() for c in string) == 2 * language.KEY_DIGITS
        assert all(c.islower() for c in string if c not in "#?" and not c.isdigit())


def test_the_key_may_be_anywhere():
    codes = language.passkeys(4000, 16, torch.Generator().manual_seed(0))
    places = (codes == ord("#")).int().argmax(1)
    assert sorted(places.unique().tolist()) == list(range(14))


def test_training_repeats_and_learns():
    corpus = text.corpus("DOC", 60_000)
    setting = language.Setting("lssar", 12, 4, 0.01, 1, 2)
    (model, history), (again, _) = (language.train_language_model(setting, corpus) for _ in range(2))
    assert history.train_loss[-1] < history.train_loss[0] - 0.5
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    finder, history = language.train_key_finder(language.Setting("softmax", 30, 8, 0.01, 1, 2))
    assert history.train_loss[-1] < history.train_loss[0] - 1
    found = language.accuracy_by_length(finder, 4, 0)
    assert list(found) == [1, 2, 4, 8]
    assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize(("heads", "time", "width", "power"), [
    (2, 128, 64, 15), (3, 100, 32, 15), (1, 5, 8, 3), (2, 200, 16, 1), (1, 1, 4, 15),
])
def test_the_compiled_form_agrees(heads, time, width, power):
    q, k, v = (part.float() for part in drawn(time, width, seed=time, heads=heads))
    out = np.full((heads, time, width), np.nan, np.float32)
    lssar_attention(q.numpy(), k.numpy(), v.numpy(), out, power)
    exact = method.lssar_rows(q.double(), k.double(), power) @ v.double()
    assert np.abs(out - exact.numpy()).max() < 1e-4
