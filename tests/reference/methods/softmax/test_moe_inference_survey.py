import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import expert_cache, moe_dispatch
from reference.methods.softmax import moe_inference_survey as survey
from reference.methods.softmax import moe_inference_survey_models as models
from reference.methods.softmax import moe_inference_survey_traces as traces
from reference.methods.softmax import moe_inference_survey_training as training
from reference.methods.softmax.moe_dispatch import Experts
from reference.methods.softmax.moe_inference_survey_pruning import CRITERIA, keep_experts, least_change, mixed
from reference.testbeds import moe_lm
from reference.testbeds.seeding import generator
from reference.testbeds.text import corpus

CALLS = st.lists(st.integers(0, 5), min_size=1, max_size=14)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model():
    return moe_lm.make(0, moe_lm.Mixture(experts=6, top_k=2, hidden=8), width=16, context=16).requires_grad_(False)


@pytest.fixture
def characters():
    return torch.randint(128, (4, 16), generator=generator("characters"))


def case(tokens=40, count=5, k=2, skew=1.0, seed=0):
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.standard_normal((tokens, 16), dtype=np.float32))
    matrices = [random.standard_normal(shape, dtype=np.float32) / 3 for shape in ((count, 16, 8), (count, 8, 16))]
    return x, Experts(*map(torch.from_numpy, matrices)), *moe_dispatch.zipf_routes(tokens, count, k, skew, random)


# --- dispatch ---


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 60), count=st.integers(2, 9), k=st.integers(1, 2), skew=st.floats(0, 3),
    seed=st.integers(0, 99),
)
def test_every_dispatch_is_the_definition(tokens, count, k, skew, seed):
    x, experts, chosen, gates = case(tokens, count, k, skew, seed)
    expected = moe_dispatch.exact(x, experts, chosen, gates)
    capacity = moe_dispatch.largest_load(chosen, count)
    found = {
        "padded": moe_dispatch.padded(x, experts, chosen, gates, capacity),
        "steps": moe_dispatch.in_steps(x, experts, chosen, gates, 7),
        **{f.__name__: f(x, experts, chosen, gates)
           for f in (moe_dispatch.masked, moe_dispatch.looped, moe_dispatch.grouped, moe_dispatch.grouped_numba)},
    }
    for name, y in found.items():
        np.testing.assert_allclose(y.numpy(), expected, atol=1e-5, err_msg=name)


def test_torchs_grouped_multiplication_agrees():
    if not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this torch has no grouped_mm")
    x, experts, chosen, gates = case()
    expected = moe_dispatch.exact(x, experts, chosen, gates)
    np.testing.assert_allclose(moe_dispatch.grouped_mm(x, experts, chosen, gates).numpy(), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(capacity=st.integers(1, 30), skew=st.floats(0, 3), seed=st.integers(0, 99))
def test_buffers_drop_what_does_not_fit_and_nothing_else(capacity, skew, seed):
    x, experts, chosen, gates = case(skew=skew, seed=seed)
    place, fits = moe_dispatch.places(chosen, experts.count, capacity)
    loads = torch.bincount(chosen.flatten(), minlength=experts.count)
    assert int(fits.sum()) == int(loads.clamp(max=capacity).sum())
    slots = (chosen * 1000 + place)[fits]
    assert len(slots.unique()) == len(slots)
    dropped = moe_dispatch.padded(x, experts, chosen, gates, capacity)
    np.testing.assert_allclose(dropped.numpy(), moe_dispatch.exact(x, experts, chosen, gates * fits), atol=1e-5)


def test_first_choices_come_before_second_ones():
    chosen = torch.tensor([[1, 0], [0, 1], [0, 1]])
    place, fits = moe_dispatch.places(chosen, 2, 2)
    assert place.tolist() == [[0, 2], [0, 1], [1, 2]]
    assert fits.tolist() == [[True, False], [True, True], [True, False]]


def test_routes_have_the_popularity_asked_for():
    random = np.random.default_rng(0)
    even, _ = moe_dispatch.zipf_routes(20_000, 8, 1, 0.0, random)
    assert torch.bincount(even.flatten()).float().std().item() < 100
    skewed, gates = moe_dispatch.zipf_routes(20_000, 8, 1, 1.0, random)
    shares = np.sort(np.bincount(skewed.flatten()) / 20_000)[::-1]
    expected = 1 / np.arange(1, 9)
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.015)
    assert torch.equal(gates, torch.ones(20_000, 1))
    pairs, gates = moe_dispatch.zipf_routes(500, 8, 2, 2.0, random)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    torch.testing.assert_close(gates.sum(1), torch.ones(500))


def test_distinct_experts_by_hand():
    assert moe_dispatch.expected_distinct(1, 2, 16) == pytest.approx(2)
    assert moe_dispatch.expected_distinct(2, 2, 4) == pytest.approx(3)
    assert moe_dispatch.expected_distinct(10_000, 2, 16) == pytest.approx(16)


def test_capacity_and_bytes():
    assert moe_dispatch.capacity_of(4096, 2, 16, 1.25) == 640
    assert moe_dispatch.capacity_of(3, 1, 2, 1.0) == 2
    assert case()[1].expert_bytes == 4 * 2 * 16 * 8


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_distinct_experts_follow_the_formula_on_even_routes(tokens):
    random = np.random.default_rng(0)
    draws = [moe_dispatch.zipf_routes(tokens, 16, 2, 0.0, random)[0] for _ in range(400)]
    counts = [len(chosen.unique()) for chosen in draws]
    gap = abs(np.mean(counts) - moe_dispatch.expected_distinct(tokens, 2, 16))
    assert gap <= 4 * np.std(counts) / math.sqrt(400) + 1e-9


def test_all_experts_chosen_is_the_softmax_mixture():
    mixture = moe_lm.Mixture(experts=6, top_k=6, hidden=8)
    layer = moe_lm.make(0, mixture, width=16).layers()[0].requires_grad_(False)
    tokens = torch.randn(40, 16, generator=generator("tokens"))
    p = (tokens @ layer.gate.weight.T).softmax(-1)
    torch.testing.assert_close(layer(tokens), (p[..., None] * layer.every_expert(tokens)).sum(1))


# --- caches ---


def best_possible(calls, slots, kept):
    """Most hits by trying every decision."""
    if not calls:
        return 0
    first, rest = calls[0], calls[1:]
    if first in kept:
        return 1 + best_possible(rest, slots, kept)
    options = [kept] + ([kept | {first}] if len(kept) < slots else [kept - {out} | {first} for out in kept])
    return max(best_possible(rest, slots, option) for option in options)


@settings(max_examples=60, deadline=None)
@given(calls=st.lists(st.integers(0, 4), min_size=1, max_size=9), slots=st.integers(1, 3))
def test_belady_is_the_best_of_all_decisions(calls, slots):
    for start in ([], [0], [3, 1][:slots]):
        assert expert_cache.belady(calls, slots, start).sum() == best_possible(calls, slots, frozenset(start))


@settings(max_examples=60, deadline=None)
@given(calls=CALLS, slots=st.integers(1, 4))
def test_no_policy_beats_belady_and_a_larger_lru_never_hits_less(calls, slots):
    start = expert_cache.hottest(calls[:4], slots)
    hits = {name: policy(calls, slots, start).sum() for name, policy in expert_cache.POLICIES.items()}
    assert hits["belady"] == max(hits.values())
    assert (expert_cache.lru(calls, slots) <= expert_cache.lru(calls, slots + 1)).all()


@settings(max_examples=60, deadline=None)
@given(calls=CALLS, slots=st.integers(1, 4))
def test_lru_hits_when_few_others_were_called_in_between(calls, slots):
    hits = expert_cache.lru(calls, slots)
    for time, call in enumerate(calls):
        last = max((back for back in range(time) if calls[back] == call), default=None)
        assert hits[time] == (last is not None and len(set(calls[last + 1 : time])) < slots)


@settings(max_examples=60, deadline=None)
@given(calls=CALLS)
def test_with_room_for_all_only_first_calls_miss(calls):
    first = [calls.index(expert) == time for time, expert in enumerate(calls)]
    for policy in (expert_cache.lru, expert_cache.lfu, expert_cache.belady):
        assert (policy(calls, 6) == ~np.array(first)).all()


def test_policies_by_hand():
    calls = [0, 0, 1, 2, 0, 1]
    assert expert_cache.lru(calls, 2).tolist() == [False, True, False, False, False, False]
    assert expert_cache.lfu(calls, 2).tolist() == [False, True, False, False, True, False]
    assert expert_cache.belady(calls, 2).tolist() == [False, True, False, False, True, True]
    assert expert_cache.static_hot(calls, 2, [0, 2]).tolist() == [True, True, False, True, True, False]
    assert expert_cache.hottest([3, 1, 1, 2, 3], 2) == [1, 3]


def test_more_contents_than_slots_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        expert_cache.lru([0], 1, [0, 1])


def test_guessing_right_saves_all_waits_and_guessing_nothing_is_lru():
    random = np.random.default_rng(0)
    calls = np.stack([random.permutation(8)[:2] for _ in range(100)])
    assert expert_cache.misses_with_prefetch(calls, calls, 2) == 0
    plain = 2 * (1 - expert_cache.lru(calls.ravel().tolist(), 3).mean())
    assert expert_cache.misses_with_prefetch(calls, calls[:, :0], 3) == pytest.approx(plain)
    assert expert_cache.recall(calls, calls[:, ::-1]) == 1
    assert expert_cache.recall(calls, calls[:, :1]) == 0.5
    assert expert_cache.stall_us(2, 160_000) == pytest.approx(20)


def test_shuffling_keeps_tokens_whole():
    calls = np.arange(24).reshape(3, 4, 2)
    shuffled = expert_cache.in_random_order(calls, np.random.default_rng(0))
    assert shuffled.shape == calls.shape
    assert sorted(map(tuple, shuffled.reshape(-1, 2))) == sorted(map(tuple, calls.reshape(-1, 2)))


# --- gates ---


def test_pruned_experts_are_never_called_and_gates_are_those_of_a_smaller_router(model):
    layer, tokens = model.layers()[0], torch.randn(50, 16, generator=generator("tokens"))
    keep = torch.tensor([True, False, True, True, False, True])
    routes = survey.PrunedGate(layer.gate, keep, 2)(tokens)
    small = tokens @ layer.gate.weight[keep].T
    top = small.topk(2)
    assert torch.equal(routes.chosen, keep.nonzero()[:, 0][top.indices])
    torch.testing.assert_close(routes.gates, top.values.softmax(-1))
    with pytest.raises(ValueError, match="1 experts are kept"):
        survey.PrunedGate(layer.gate, torch.arange(6) == 3, 2)


@settings(max_examples=20, deadline=None)
@given(beta=st.floats(0, 1))
def test_the_second_expert_goes_where_its_probability_is_small(beta):
    layer = moe_lm.make(1, moe_lm.Mixture(experts=6, top_k=2, hidden=8), width=16).layers()[0].requires_grad_(False)
    tokens = torch.randn(50, 16, generator=generator("tokens"))
    before, after = layer.gate(tokens), survey.DynamicGate(layer.gate, beta)(tokens)
    p = before.logits.softmax(-1).gather(1, before.chosen)
    weak = p[:, 1] < beta * p[:, 0]
    clear = (p[:, 1] - beta * p[:, 0]).abs() > 1e-6
    assert torch.equal((after.gates[:, 1] == 0)[clear], weak[clear])
    torch.testing.assert_close(after.gates.sum(1), torch.ones(50))


def test_the_random_gate_saves_its_share(model):
    tokens = torch.randn(4000, 16, generator=generator("tokens"))
    routes = survey.RandomGate(model.layers()[0].gate, 0.3, generator("drop"))(tokens)
    assert (routes.gates[:, 1] == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_dropped_calls_equal_those_of_the_padded_kernel(model):
    layer, tokens = model.layers()[0], torch.randn(60, 16, generator=generator("tokens"))
    routes = survey.CapacityGate(layer.gate, 1.0)(tokens)
    experts = Experts(layer.up.weight, layer.down.weight)
    whole = layer.gate(tokens)
    expected = moe_dispatch.padded(tokens, experts, whole.chosen, whole.gates, 20)
    assert (routes.gates == 0).any()
    torch.testing.assert_close(layer.mix(tokens, routes.chosen, routes.gates), expected)


def test_gates_return_even_after_an_error(model):
    before = [layer.gate for layer in model.layers()]
    with pytest.raises(RuntimeError, match="stop"), survey.replaced_gates(model, lambda _, gate: survey.Recorder(gate)):
        raise RuntimeError("stop")
    assert [layer.gate for layer in model.layers()] == before


def test_look_ahead_is_the_next_gate_on_the_stream_before_the_experts(model, characters):
    guesses = survey.look_ahead(model, characters, 0)
    first, second = model.blocks
    stream = model.token_embedding(characters) + model.position_embedding.weight[:16]
    stream = stream + first.attention(first.attention_norm(stream))
    assert torch.equal(guesses, second.mlp.gate(second.mlp_norm(stream).flatten(0, 1)).chosen)
    # where the experts say nothing and attention adds nothing, the guess is right
    for block in model.blocks:
        block.mlp.down.weight.zero_()
    second.attention.output.weight.zero_()
    seen = survey.recorded(model, characters)[1].all_routes()
    assert torch.equal(survey.look_ahead(model, characters, 0), seen.chosen)


def test_writing_continues_the_prompt(model, characters):
    text = survey.decode(model, characters[:, :4], 6, 0.8, generator("decode"))
    assert text.shape == (4, 10)
    assert torch.equal(text[:, :4], characters[:, :4])
    assert torch.equal(text, survey.decode(model, characters[:, :4], 6, 0.8, generator("decode")))


# --- which experts to keep ---


def test_criteria_by_hand(model, characters):
    layer, seen = model.layers()[0], survey.recorded(model, characters)[0]
    routes = seen.all_routes()
    calls = torch.bincount(routes.chosen.flatten(), minlength=6)
    weights = torch.stack([routes.gates[routes.chosen == expert].sum() for expert in range(6)])
    for criterion, value in (("frequency", calls.float()), ("gate_weight", weights)):
        keep = keep_experts(criterion, layer, seen, 2, generator(0))
        assert int(keep.sum()) == 4
        assert value[keep].min() >= value[~keep].max(), criterion
    for criterion in CRITERIA:
        assert int(keep_experts(criterion, layer, seen, 3, generator(0)).sum()) == 3
        assert keep_experts(criterion, layer, seen, 0, generator(0)).all()


def test_the_first_expert_to_go_changes_the_output_least(model, characters):
    layer, seen = model.layers()[0], survey.recorded(model, characters)[0]
    tokens, logits = seen.all_tokens(), seen.all_routes().logits
    outputs = layer.every_expert(tokens)
    torch.testing.assert_close(mixed(outputs, logits, torch.ones(6, dtype=torch.bool), 2), layer(tokens))
    errors = []
    for expert in range(6):
        layer_gate = survey.PrunedGate(layer.gate, torch.arange(6) != expert, 2)
        routes = layer_gate(tokens)
        errors.append((layer.mix(tokens, routes.chosen, routes.gates) - layer(tokens)).square().sum().item())
    keep = least_change(layer, tokens, logits, 1)
    assert keep.tolist() == [expert != int(np.argmin(errors)) for expert in range(6)]


def test_greedy_is_not_far_from_trying_all_pairs(model, characters):
    layer, seen = model.layers()[0], survey.recorded(model, characters)[0]
    tokens, logits = seen.all_tokens(), seen.all_routes().logits
    outputs, target = layer.every_expert(tokens), layer(tokens)

    def error(keep):
        return (mixed(outputs, logits, keep, 2) - target).square().sum().item()

    every = torch.arange(6)
    best = min(error((every != a) & (every != b)) for a, b in itertools.combinations(range(6), 2))
    assert best <= error(least_change(layer, tokens, logits, 2)) * (1 + 1e-6)
    assert error(least_change(layer, tokens, logits, 2)) <= 1.5 * best
    assert math.isfinite(best)


# --- models, their costs and traces ---


@pytest.fixture(scope="module")
def subject():
    text = corpus("DOC", 300_000)
    return models.subject(moe_lm.make(3, models.MIXTURE).state_dict(), text, 0)


def test_calibration_is_drawn_anew_for_each_draw_and_the_same_for_each_criterion(subject):
    first = subject.calibration(3, 0)
    assert first.shape == (3, 64)
    assert torch.equal(first, subject.calibration(3, 0))
    assert not torch.equal(first, subject.calibration(3, 1))


def test_pruning_nothing_and_limitless_buffers_cost_nothing(subject):
    assert models.pruned(subject, "random", 0.0, 1)["excess"] == 0
    assert models.limited(subject, None) == {"test_loss": subject.loss(training.TEST_WINDOWS), "drop_rate": 0.0}
    assert models.limited(subject, 16.0)["drop_rate"] == 0


def test_weak_second_calls_are_saved_as_often_as_on_calibration_text(subject):
    for rule in ("dynamic_k", "random_k"):
        found = models.fewer_calls(subject, rule)
        assert found["saved"] == pytest.approx(models.SAVED_SECOND_CALLS / 2, abs=0.04)
        assert found["ppl_ratio"] == pytest.approx(math.exp(found["excess"]))


def test_traces_and_what_is_measured_on_them(subject):
    found = traces.traces(subject, 4)
    assert [part.shape for part in found["sampled"]] == [(4, 48, 2)] * 3
    assert [part.shape for part in found["text"]] == [(4, 64, 2)] * 3
    random = np.random.default_rng(0)
    rates = {arm: traces.cached(found, "text", arm, 0.25, random) for arm in expert_cache.POLICIES}
    assert rates["belady"]["of_belady"] == 1
    assert all(rate["of_belady"] <= 1 for rate in rates.values())
    assert traces.cached(found, "text", "lru_shuffled", 0.25, random)["hit_rate"] > 0
    previous = traces.guessed(found, "text", "previous_token")
    assert 0 <= previous["recall"] <= 1
    assert previous["stall_us"] <= previous["stall_without_us"] * 2


def test_both_models_are_trained_on_equal_terms():
    config = {"steps": 2, "corpus_bytes": 300_000, "lr": 0.003, "data_seed": 1, "init_seed": 2}
    found = {arm: training.pretrained({**config, "arm": arm}) for arm in training.MODELS}
    assert found["moe"]["digest"] == found["dense"]["digest"]
    assert found["moe"]["parameters"] > 3 * found["dense"]["parameters"]
    shared = "blocks.0.attention.query.weight"
    assert found["moe"]["state"][shared].shape == found["dense"]["state"][shared].shape
    again = training.pretrained({**config, "arm": "moe"})
    assert again["test_loss"] == found["moe"]["test_loss"]
    assert math.isfinite(again["test_loss"])
