import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import dynamic_logits_fusion as fusion
from reference.methods.softmax import dynamic_logits_fusion_models as models
from reference.methods.softmax.dynamic_logits_fusion_numba import alphas
from reference.testbeds import tasks
from reference.testbeds.decoding import complete

seeds = st.integers(0, 10_000)


def drawn(seed, batch=5, vocabulary=17, spread=1.0):
    random = torch.Generator().manual_seed(seed)
    large, small, moved = (2 * torch.randn(batch, vocabulary, generator=random).double() for _ in range(3))
    return large.log_softmax(-1), small.log_softmax(-1), (small + spread * moved).log_softmax(-1)


@given(seeds, st.floats(0, 1.9), st.floats(0.01, 0.1))
@settings(deadline=None, max_examples=60)
def test_divergence_rises_with_alpha(seed, alpha, step):
    large, small, expert = drawn(seed)
    low, high = (fusion.fused_kl(large, expert - small, torch.full((5,), value).double())
                 for value in (alpha, alpha + step))
    assert (high > low).all()


@given(seeds, st.floats(0.05, 1.0))
@settings(deadline=None, max_examples=60)
def test_roots_meet_their_targets(seed, spread):
    large, small, expert = drawn(seed, spread=spread)
    shift, target = expert - small, fusion.kl(expert, small)
    found = fusion.alpha_by_bisection(large, shift, target)
    left = (fusion.fused_kl(large, shift, found.values) - target).abs()
    assert (left[~found.capped] < 1e-9).all()
    assert (found.values[found.capped] == fusion.CAP).all()
    quick = torch.from_numpy(alphas(*(part.float().contiguous().numpy() for part in (large, shift, target))))
    left = (fusion.fused_kl(large, shift, quick) - target).abs()
    assert (left[~found.capped] < 1e-4 * target[~found.capped].clamp_min(1)).all()
    grid = fusion.alpha_by_grid(large, shift, target)
    assert ((grid.values - found.values).abs() <= fusion.STEP).all()


@given(seeds)
@settings(deadline=None, max_examples=30)
def test_raw_logits_give_what_log_probabilities_give(seed):
    large, small, expert = drawn(seed)
    weights = torch.full((1, 5), 0.8).double()
    plain = fusion.fused(large, (expert - small)[None], weights)
    torch.testing.assert_close(plain.exp().sum(-1), torch.ones(5).double())
    torch.testing.assert_close(fusion.fused(large + 3.0, (expert - small)[None] - 7.0, weights), plain)


def test_divergence_against_its_definition():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])
    assert fusion.kl(p.log(), q.log()) == pytest.approx(np.log(2), abs=1e-6)


def test_numba_takes_several_experts_and_other_caps():
    large, small, expert = (part.float() for part in drawn(3, spread=0.3))
    shift, target = expert - small, fusion.kl(expert, small)
    both = alphas(large.numpy(), torch.cat([shift, shift]).numpy(), torch.cat([target, target / 4]).numpy(), cap=1.0)
    for part, goal in ((both[:5], target), (both[5:], target / 4)):
        expected = fusion.alpha_by_bisection(large.double(), shift.double(), goal.double(), cap=1.0).values
        np.testing.assert_allclose(part, expected.numpy(), atol=5e-3)


def test_a_character_that_the_expert_rules_out_does_not_overflow():
    large, small, expert = (part.float() for part in drawn(4))
    expert[:, 0] = -200.0
    expert = expert.log_softmax(-1)
    found = alphas(large.numpy(), (expert - small).numpy(), fusion.kl(expert, small).numpy())
    assert np.isfinite(found).all()


def test_sparse_search_takes_one_expert_at_most():
    large, small, expert = drawn(5, spread=0.4)
    _, other_small, other = drawn(6, spread=0.2)
    shifts = torch.stack([expert - small, other - other_small])
    targets = torch.stack([fusion.kl(expert, small), fusion.kl(other, other_small)])
    for rule in (fusion.sparse_grid, fusion.largest_shift):
        found = rule(large, shifts, targets)
        assert ((found.values > 0).sum(0) <= 1).all()
        assert not (found.capped & (found.values == 0)).any()
    assert (fusion.largest_shift(large, shifts, targets).values.argmax(0) == targets.argmax(0)).all()


@pytest.fixture(scope="module")
def trio():
    def random_model(shape, seed):
        made = models.model_of(shape, seed).eval()
        torch.nn.init.normal_(made.head.weight, 0.0, 0.5, generator=torch.Generator().manual_seed(seed))
        return made

    return random_model("1x32", 0), random_model("1x16", 1), random_model("1x16", 2)


PROMPTS = tasks.examples("REV", 6, 0).prompts


def test_without_weights_the_large_model_answers(trio):
    large, small, expert = trio
    alone = complete(large, PROMPTS, models.MAX_NEW)
    assert models.Fusion(large, small, (expert,), models.static(0.0)).answers(PROMPTS) == alone
    assert models.Alone(large).answers(PROMPTS) == alone


def test_an_expert_of_the_large_model_itself_answers_alone(trio):
    large, small, _ = trio
    assert models.Fusion(small, large, (small,), models.static(0.0)).answers(PROMPTS) == complete(
        small, PROMPTS, models.MAX_NEW)
    other = models.tuned(large, ["REV"], 2, 0.01, 0)
    recorder = models.Recorder(models.dynamic)
    answers = models.Fusion(large, large, (other,), recorder).answers(PROMPTS)
    assert answers == complete(other, PROMPTS, models.MAX_NEW)
    assert (torch.stack(recorder.values) - 1).abs().max() < 0.1


def test_dynamic_weights_are_the_roots(trio):
    large, small, expert = drawn(7, spread=0.3)
    _, other_small, other = drawn(8, spread=0.3)
    shifts = torch.stack([expert - small, other - other_small]).float()
    targets = torch.stack([fusion.kl(expert, small), fusion.kl(other, other_small)]).float()
    found = models.dynamic(large.float(), shifts, targets)
    expected = torch.stack([fusion.alpha_by_bisection(large, shift.double(), target.double()).values
                            for shift, target in zip(shifts, targets, strict=True)])
    torch.testing.assert_close(found.values.double(), expected, atol=5e-3, rtol=0)
    routed = models.routed(1)(large.float(), shifts, targets).values
    assert (routed[0] == 0).all()
    assert torch.equal(routed[1], found.values[1])


def test_the_control_uses_the_same_weights_in_another_order(trio):
    large, small, expert = trio
    for rule in (models.dynamic, models.static(0.7)):
        joined = models.Fusion(large, small, (expert,), rule)
        again = models.Shuffled(joined, 0).answers(PROMPTS)
        assert again == models.Shuffled(joined, 0).answers(PROMPTS)
    assert again == joined.answers(PROMPTS)  # equal weights have one order


def test_merging(trio):
    _, small, expert = trio
    first = next(iter(small.state_dict()))
    at = [model.state_dict()[first] for model in (small, expert)]
    torch.testing.assert_close(models.merged(small, [expert], 1.0).state_dict()[first], at[1])
    torch.testing.assert_close(models.merged(small, [expert], 0.0).state_dict()[first], at[0])
    torch.testing.assert_close(models.merged(small, [expert] * 2, 0.5).state_dict()[first], at[1])


def test_loss_of_right_answers_is_the_models_own(trio):
    large, small, expert = trio
    asked = tasks.examples("SUB2", 5, 0, "test")
    own = models.Alone(large).loss(asked)
    assert models.Fusion(large, small, (expert,), models.static(0.0)).loss(asked) == pytest.approx(own, rel=1e-4)


def test_tuning_leaves_the_base_alone_and_teaches_the_copy(trio):
    large, _, _ = trio
    before = large.state_dict()["head.weight"].clone()
    asked = tasks.examples("DATE", 32, 0, "validation")
    tuned = models.tuned(large, ["DATE"], 20, 0.004, 0)
    assert torch.equal(large.state_dict()["head.weight"], before)
    assert models.Alone(tuned).loss(asked) < models.Alone(large).loss(asked)


def test_best_fixed_weight_is_found_on_the_given_examples(trio):
    large, small, expert = trio
    asked = tasks.examples("REV", 4, 0, "validation")
    joined = models.Fusion(large, small, (expert,), models.dynamic)
    assert models.best_static(joined, asked, (0.5, 1.0)) in (0.5, 1.0)
    for arm, alpha in (("static_15", 1.5), ("static_tuned", 0.6)):
        found = models.weighed(joined, arm, 0.6, asked)
        found.answers(asked.prompts)
        assert models.used([found.weigh])["alpha"] == pytest.approx(alpha)


def test_both_sides_are_scored_in_one_batch(trio):
    large, small, expert = trio
    joined = models.Fusion(large, small, (expert,), models.static(1.0))
    sides = [models.asked_of("DATE", 5, part) for part in ("test", "validation")]
    expected = tuple(side.exact_match(joined.answers(side.prompts)) for side in sides)
    assert models.scores(joined, "DATE", 5) == expected


def test_closure():
    assert models.closure(0.5, 0.25, 0.75) == 0.5
    assert np.isnan(models.closure(0.5, 0.25, 0.25))


def test_the_joint_objective_sees_one_number():
    """With one expert it is the grid of the single task; with several, every expert reaches the mean target alike."""
    large, small, expert = drawn(5, spread=0.3)
    shift, target = (expert - small)[None], fusion.kl(expert, small)[None]
    assert torch.equal(fusion.sparse_grid(large, shift, target).values[0],
                       fusion.alpha_by_grid(large, shift[0], target[0]).values)
    other = drawn(6, spread=0.3)
    targets = torch.cat([target, target / 2])
    for each in torch.cat([shift, (other[2] - other[1])[None]]):
        alpha = fusion.alpha_by_bisection(large, each, targets.mean(0))
        left = (fusion.fused_kl(large, each, alpha.values) - targets.mean(0)).abs()
        assert (left[~alpha.capped] < 1e-9).all()
