"""Which experts a trained mixture calls as it reads and writes, and what caches and guesses of them are worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.methods.softmax import expert_cache
from reference.methods.softmax import moe_inference_survey as survey
from reference.methods.softmax.moe_inference_survey_models import MIXTURE, Subject
from reference.methods.softmax.moe_inference_survey_training import CONTEXT, test_windows
from reference.testbeds.seeding import generator

PROMPT, TEMPERATURE = 16, 0.8
EXPERT_BYTES = 4 * 2 * 128 * MIXTURE.hidden

Traces = dict[str, list[NDArray[np.int64]]]


def traces(subject: Subject, sequences: int) -> Traces:
    """Calls of each layer [sequences, time, k], and at the end those of the last layer that look-ahead guesses.

    ``text`` is held-out text, ``sampled`` what the model writes behind its first 16 characters at temperature 0.8,
    ``calibration`` training text.
    """
    model, read = subject.model, test_windows(subject.text, sequences)[:, :-1]
    random = generator("decode", subject.seed)
    written = survey.decode(model, read[:, :PROMPT], CONTEXT - PROMPT, TEMPERATURE, random)
    before = subject.calibration(sequences, "traces")
    found: Traces = {}
    for name, tokens, first in (("text", read, 0), ("sampled", written, PROMPT), ("calibration", before, 0)):
        calls = [seen.all_routes().chosen for seen in survey.recorded(model, tokens)]
        calls.append(survey.look_ahead(model, tokens, layer=len(calls) - 2))
        found[name] = [part.unflatten(0, tokens.shape)[:, first:].numpy() for part in calls]
    return found


def cached(found: Traces, trace: str, arm: str, share: float, random: np.random.Generator) -> dict[str, float]:
    """Hits and waits with room for a ``share`` of the experts, means over both layers.

    ``arm`` is a policy; ``lru_shuffled`` serves the same tokens in random order.
    """
    slots, policy = round(share * MIXTURE.experts), arm.removesuffix("_shuffled")
    rates, best = [], []
    for calls, before in zip(found[trace][:-1], found["calibration"][:-1], strict=True):
        served = calls if arm == policy else expert_cache.in_random_order(calls, random)
        hot = expert_cache.hottest(before.ravel().tolist(), slots)
        rates.append(expert_cache.rates(policy, served, slots, hot))
        best.append(expert_cache.rates("belady", served, slots, hot)[0])
    warm, cold = (float(np.mean(column)) for column in zip(*rates, strict=True))
    return {"hit_rate": warm, "excess": warm - share, "cold_hit_rate": cold, "of_belady": warm / float(np.mean(best)),
            "stall_us": expert_cache.stall_us((1 - warm) * MIXTURE.top_k * len(rates), EXPERT_BYTES)}


def guessed(found: Traces, trace: str, guess: str) -> dict[str, float]:
    """The last layer's calls against what was expected of it, and its waits when that was loaded ahead or nothing."""
    *_, calls, ahead = (part.reshape(-1, MIXTURE.top_k) for part in found[trace])
    hot = np.array(expert_cache.hottest(found["calibration"][-2].ravel().tolist(), MIXTURE.top_k))
    expected = {"look_ahead": ahead, "popularity": np.broadcast_to(hot, calls.shape),
                "previous_token": np.vstack([hot, calls[:-1]])}[guess]
    misses = [expert_cache.misses_with_prefetch(calls, loaded, MIXTURE.experts // 4)
              for loaded in (expected, calls[:, :0])]
    waits = [expert_cache.stall_us(count, EXPERT_BYTES) for count in misses]
    return {"recall": expert_cache.recall(calls, expected), "stall_us": waits[0], "stall_without_us": waits[1]}
