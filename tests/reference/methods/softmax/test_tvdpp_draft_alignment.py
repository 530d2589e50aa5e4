import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import tvdpp_draft_alignment as losses
from reference.methods.softmax import tvdpp_draft_alignment_text as instructed
from reference.methods.softmax import tvdpp_draft_alignment_training as training
from reference.methods.softmax.speculative import expected_blocks

seeds = st.integers(0, 10_000)


def pair(seed, places=4, letters=6):
    random = torch.Generator().manual_seed(seed)
    p, q = torch.softmax(2 * torch.randn(2, places, letters, generator=random, dtype=torch.float64), -1)
    return p, q.log().requires_grad_()


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@given(seeds)
@settings(deadline=None, max_examples=50)
def test_the_surrogate_has_the_gradient_of_the_distance(seed):
    p, logits = pair(seed)
    torch.testing.assert_close(gradient(losses.policy_loss(p, logits, advantage=False), logits),
                               gradient(losses.distance(p, logits), logits))


@given(seeds)
@settings(deadline=None, max_examples=50)
def test_over_the_vocabulary_the_baseline_cancels(seed):
    p, logits = pair(seed)
    plain, scaled = (gradient(losses.policy_loss(p, logits, advantage=flag), logits).flatten()
                     for flag in (False, True))
    assert torch.cosine_similarity(plain, scaled, dim=0) > 1 - 1e-9
    assert scaled.norm() > 1.9 * plain.norm()  # the standard deviation of a 0/1 reward is at most 1/2


@pytest.mark.parametrize("advantage", [False, True])
def test_sampled_gradients_have_the_exact_mean(advantage):
    p, logits = pair(13, places=1, letters=5)
    exact = gradient(losses.policy_loss(p, logits, advantage=False), logits).flatten()
    loss = losses.policy_loss(p, logits, advantage=advantage, samples=4000, random=torch.Generator().manual_seed(15))
    assert torch.cosine_similarity(gradient(loss, logits).flatten(), exact, dim=0) > 0.995


def test_expected_blocks_agree_with_enumeration():
    """Over all 2^6 patterns of acceptance of a text of 6 characters."""
    kept, gamma, total = np.random.default_rng(0).random((1, 6)), 2, 0.0
    for pattern in np.ndindex(*(2,) * 6):
        place, calls = 0, 0
        while place < 6:
            run = 0
            while run < gamma and place + run < 6 and pattern[place + run]:
                run += 1
            place, calls = place + run + 1, calls + 1
        total += float(np.prod(np.where(pattern, kept[0], 1 - kept[0]))) * calls
    assert total == pytest.approx(float(expected_blocks(kept, np.array([6]), gamma)[0]), abs=1e-12)


def test_advantages_are_centred_and_scaled():
    found = losses.advantages(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert found.mean().abs() < 1e-6
    assert found.std(correction=0) == pytest.approx(1.0, abs=1e-4)
    assert torch.isfinite(losses.advantages(torch.ones(5))).all()


def test_a_draft_that_matches_gets_no_push():
    _, logits = pair(0)
    p = logits.detach().log_softmax(-1).exp()
    for samples in (None, 3):
        loss = losses.policy_loss(p, logits, advantage=True, samples=samples, random=torch.Generator().manual_seed(0))
        assert torch.isfinite(loss)
        assert gradient(loss, logits).abs().max() < 1e-6


@given(seeds)
@settings(deadline=None, max_examples=30)
def test_divergences_against_their_definitions(seed):
    p, logits = pair(seed)
    q = logits.detach().exp()
    m = (p + q) / 2

    def kl(a, b):
        return (a * (a / b).log()).sum(-1).mean()

    torch.testing.assert_close(losses.forward_kl(p, logits).detach(), kl(p, q))
    torch.testing.assert_close(losses.reverse_kl(p, logits).detach(), kl(q, p))
    torch.testing.assert_close(losses.jensen_shannon(p, logits).detach(), (kl(p, m) + kl(q, m)) / 2)
    # Pinsker: TVD is at most sqrt(KL / 2)
    assert losses.distance(p, logits) <= math.sqrt(kl(p, q) / 2) + 1e-9


def test_every_loss_takes_the_same_arguments_and_reaches_the_draft():
    p, logits = pair(1)
    y = torch.tensor([0, 1, 2, 3])
    for name, loss in losses.LOSSES.items():
        assert gradient(loss(p, logits, y, torch.Generator().manual_seed(0)), logits).abs().max() > 0, name


def test_spread_is_measured_at_equal_scale():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean(0)
    small, scale = losses.gradient_spread(exact + noise, exact)
    assert scale == pytest.approx(1.0)
    large, scale = losses.gradient_spread(3 * (exact + noise), exact)
    assert scale == pytest.approx(3.0)
    assert large == pytest.approx(small)


def test_instructions_are_split_by_module_and_fit():
    parts = {name: instructed.instructions(name) for name in instructed.PARTS}
    assert len(parts["test"].prompts) >= 200
    assert len(parts["validation"].prompts) >= 200
    for part in parts.values():
        assert len(part.prompts) == len(part.answers)
        assert all(prompt.endswith(":\n") and len(prompt) <= 40 for prompt in part.prompts)
        assert all(answer.endswith("\n") and 10 < len(answer) <= 56 for answer in part.answers)
    with pytest.raises(KeyError, match="validation"):
        instructed.instructions("dev")


@pytest.fixture(scope="module")
def target():
    made = training.model_of("1x16", 0)
    torch.nn.init.normal_(made.head.weight, 0.0, 0.7, generator=torch.Generator().manual_seed(0))
    return made.eval()


PROMPTS = ["close(self):\n", "f(x):\n", "read_all(self, size):\n"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_written_texts_carry_the_targets_probabilities(target, temperature):
    written = training.write(target, PROMPTS, temperature, 0)
    for row, prompt in enumerate(PROMPTS):
        count = int(written.counts[row])
        assert bytes(written.tokens[row, : len(prompt)].tolist()).decode() == prompt
        text = written.tokens[row, : len(prompt) + count]
        assert text[len(prompt):].tolist() == written.characters()[row, :count].tolist()
        logits = target(text[None, :-1])[0, len(prompt) - 1 :].detach()
        if temperature == 0.0:
            assert logits.argmax(-1).tolist() == text[len(prompt):].tolist()
        else:
            expected = (logits / temperature).log_softmax(-1).gather(-1, text[len(prompt):, None])[:, 0]
            torch.testing.assert_close(written.log_p[row, :count], expected, rtol=1e-4, atol=1e-4)


def test_the_target_is_its_own_best_draft(target):
    written = [training.write(target, PROMPTS, t, 0, end=None) for t in training.TEMPERATURES]
    for (gamma, _), value in training.efficiencies(target, written).items():
        assert value == pytest.approx(training.ANSWER_CHARACTERS / math.ceil(
            training.ANSWER_CHARACTERS / (gamma + 1)), rel=1e-3)
    other = training.model_of("1x16", 5).eval()
    assert np.mean(list(training.efficiencies(other, written).values())) < 2


def test_distillation_rows_line_up(target):
    data = training.distillation_set(target, 12, 0)
    tokens, mask, p = data.rows(torch.tensor([7, 2]))
    assert len(p) == mask.sum()
    torch.testing.assert_close(p, target(tokens[:, :-1])[mask[:, 1:]].softmax(-1).detach(), rtol=1e-4, atol=1e-5)
    assert training.mean_acceptance(target, data) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("loss", ["kld", "tvd_full", "tvdpp_sampled"])
def test_alignment_raises_acceptance(target, loss):
    data = training.distillation_set(target, 16, 0)
    draft = training.model_of("1x16", 3)
    before = training.mean_acceptance(draft.eval(), data)
    training.align(draft, data, loss, 0.01, 30, 0)
    assert training.mean_acceptance(draft, data) > before


def test_gradient_noise_is_measured_on_one_batch(target):
    data = training.distillation_set(target, 16, 0)
    draft = training.model_of("1x16", 3).eval()
    plain, scale = training.gradient_noise(draft, data, False, 24, 0)
    assert plain > 0
    assert scale == pytest.approx(1.0, abs=0.3)
    assert training.gradient_noise(draft, data, True, 24, 0)[1] > 1.5
