"""Inference of mixtures of experts (arXiv 2412.14219): pruning, caches, prefetching, dispatch on one trained model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Suite
from reference.methods.softmax import expert_cache, moe_dispatch
from reference.methods.softmax import moe_inference_survey as survey
from reference.methods.softmax import moe_inference_survey_models as models
from reference.methods.softmax import moe_inference_survey_traces as routes
from reference.methods.softmax.moe_inference_survey_pruning import keep_experts
from reference.methods.softmax.moe_inference_survey_training import doc, pretrained
from reference.testbeds import moe_lm
from reference.testbeds.seeding import generator
from suites.softmax.moe_inference_survey import speed
from suites.softmax.moe_inference_survey.byte_model import byte_model_r2

Metrics = dict[str, Any]
Tuned = Mapping[str, Any]

suite = Suite(__file__)
suite.estimate("byte_model_r2")(byte_model_r2)
suite.speed("decode")(speed.decode)
suite.speed("dispatch")(speed.dispatch)
suite.speed("gpu_dispatch")(speed.dispatch)


def trained(arm: str, point: Point, seed: int, tuned: Tuned) -> Metrics:
    """A model's state and losses, prepared once: the mixtures of all experiments are those of ``training``."""
    config = {"arm": arm, "steps": point["steps"], "corpus_bytes": point["corpus_bytes"], "lr": tuned["lr"],
              "data_seed": seed_for("data", seed), "init_seed": seed_for("init", seed)}
    found = suite.prepare("model", config, pretrained)
    suite.uses_data("DOC", found["digest"])
    return found


def mixture(point: Point, seed: int, tuned: Tuned) -> models.Subject:
    """The trained mixture of this seed."""
    text = suite.prepare("doc", {"corpus_bytes": point["corpus_bytes"]}, doc)
    return models.subject(trained("moe", point, seed, tuned)["state"], text, seed)


@suite.trial("training")
def training(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """One model from scratch."""
    found = trained(arm, point, seed, tuned)
    return {name: found[name] for name in ("test_loss", "val_loss", "parameters")}


@suite.trial("pruning")
def pruning(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """One criterion."""
    return models.pruned(mixture(point, seed, tuned), arm, point["removed"], point["draws"])


@suite.trial("dynamic")
def dynamic(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """Second experts left out where they are weak, or at random."""
    return models.fewer_calls(mixture(point, seed, tuned), arm)


@suite.trial("capacity")
def capacity(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """Test loss with buffers of limited capacity, or without limit."""
    return models.limited(mixture(point, seed, tuned), point["factor"] if arm == "dropped" else None)


def traces(point: Point, seed: int, tuned: Tuned) -> routes.Traces:
    """Every layer's calls by what is read, prepared once."""
    config = {name: point[name] for name in ("steps", "corpus_bytes", "sequences")} | {"seed": seed, **tuned}
    return suite.prepare("traces", config, lambda _: routes.traces(mixture(point, seed, tuned), point["sequences"]))


@suite.trial("cache")
def cache(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """One policy."""
    random = np.random.default_rng(seed_for("shuffle", seed))
    return routes.cached(traces(point, seed, tuned), point["trace"], arm, point["share"], random)


@suite.trial("prefetch")
def prefetch(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """One way to guess."""
    return routes.guessed(traces(point, seed, tuned), point["trace"], arm)


@suite.oracle
def all_dispatches_agree() -> None:
    """With the float64 definition, to 1e-5, when nothing drops; so does the layer of the trained model."""
    for skew in (0, 1):
        point = {"tokens": 64, "experts": 8, "skew": skew}
        problem = speed.dispatch(point, np.random.default_rng(skew), "cpu", width=16, hidden=8)
        inputs = problem.inputs(np.random.default_rng(1))
        expected = problem.truth(*inputs)
        for name, arm in problem.arms.items():
            error = np.abs(arm.run(*inputs).double().numpy() - expected).max()
            assert error <= 1e-5 * np.abs(expected).max(), (name, error)
    layer, tokens = _layer(2)
    calls, experts = layer.gate(tokens), moe_dispatch.Experts(layer.up.weight, layer.down.weight)
    assert torch.allclose(layer(tokens), moe_dispatch.looped(tokens, experts, calls.chosen, calls.gates), atol=1e-5)


@suite.oracle
def belady_is_never_beaten() -> None:
    """By any policy, on traces with and without locality."""
    random = np.random.default_rng(0)
    walk = np.abs(random.integers(-2, 3, 200).cumsum()) % 9
    for slots in (1, 3, 5):
        for calls in (random.integers(0, 9, 200).tolist(), walk.tolist()):
            hits = {name: policy(calls, slots, calls[:1]).sum() for name, policy in expert_cache.POLICIES.items()}
            assert hits["belady"] == max(hits.values()), (slots, hits)


@suite.oracle
def changed_gates_keep_what_they_should() -> None:
    """No expert pruned, no weak second one, room for all: nothing changes. Gates of a token always sum to one."""
    layer, tokens = _layer(2)
    gate, before = layer.gate, layer.gate(tokens)
    nothing = keep_experts("reconstruction", layer, survey.recorded_layer(layer, tokens), 0, generator(0))
    for changed in (survey.PrunedGate(gate, nothing, 2), survey.DynamicGate(gate, 0.0), survey.CapacityGate(gate, 6.0)):
        after = changed(tokens)
        assert torch.equal(after.chosen, before.chosen), type(changed).__name__
        assert torch.allclose(after.gates, before.gates), type(changed).__name__
    pruned = survey.PrunedGate(gate, torch.tensor([True, False, True, True, False, True]), 2)(tokens)
    assert not torch.isin(pruned.chosen, torch.tensor([1, 4])).any()
    assert torch.allclose(pruned.gates.sum(1), torch.ones(40))


def _layer(top_k: int) -> tuple[moe_lm.MoE, torch.Tensor]:
    """A fresh layer of six experts and 40 tokens for it."""
    model = moe_lm.make(0, moe_lm.Mixture(experts=6, top_k=top_k, hidden=8), width=16)
    return model.layers()[0].requires_grad_(False), torch.randn(40, 16, generator=generator("oracle"))
