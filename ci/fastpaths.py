"""The fast paths beside their targets: each row times ours and its rivals interleaved, in several fresh processes.

    ci/fastpaths.py [WORD ...]     rows whose name holds every WORD, all without one
      --processes N --rounds N     how long to measure (3 and 8); --json writes one line of JSON a row

A row prints the median over rounds of rival time / our time with the range of the processes' medians, and the target.
The error of our result is checked once a process: a fast wrong result ends the script. Ends with 1 where a row is below
its target.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.declare.card import Measure
from harness.run.measure.canary import per_round
from harness.run.measure.rounds import Bench, run_rounds
from harness.run.measure.threads import limit_threads

Calls = Mapping[str, Callable[[], object]]
M, G = 2**20, 2**30


@dataclass(frozen=True)
class Row:
    """``build(**arguments)`` gives the calls by name; the first is ours, the others are what ``rival`` combines."""

    name: str
    build: Callable[..., Calls]
    arguments: Mapping[str, Any]
    threads: int | str
    target: float
    rival: str = "min"  # or "sum": a limit that is made of several streams


# --- softmax


def softmax_calls(rows: int, n: int, threads: int | str, rivals: tuple[str, ...]) -> Calls:
    """Our two-pass softmax and ``rivals`` on one input."""
    import numpy as np
    import torch

    from harness.run.measure.threads import thread_count
    from reference.kernels.softmax import numba_cpu, truth
    from suites.softmax.two_pass_softmax.arms import Tensors, _torch, draw, written

    torch.set_flush_denormal(True)
    count = thread_count(threads)
    x, y = draw(np.random.default_rng(0), (rows, n)), written((rows, n))
    tensors = Tensors(torch.from_numpy(x), torch.from_numpy(y))
    parts = numba_cpu.partials(count)

    def ours(algorithm: str) -> Callable[[], object]:
        kernel = numba_cpu.bind(algorithm, rows, n, count)
        return lambda: kernel(x, y)

    known: dict[str, Callable[[], object]] = {
        "torch": lambda: _torch(x, y, tensors),
        "three_pass_recompute": ours("three_pass_recompute"),
        "three_pass_reload": ours("three_pass_reload"),
        "read": lambda: numba_cpu.run_pass("stream_read", x[0], x[0], *parts),
        "read and write": lambda: numba_cpu.run_pass("stream_copy", x[0], y[0], *parts),
    }
    two_pass = ours("two_pass")
    two_pass()
    assert truth.error_units(y, truth.softmax(x)) <= 8.0
    return {"two_pass": two_pass, **{name: known[name] for name in rivals}}


# --- quantize


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: bitsandbytes' CPU operators cannot write into a tensor that is there.

    Else both arms spend most of their time in the kernel, which clears the same fresh pages for either.
    """
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**30)


def quantize_calls(n: int, threads: int | str, what: str) -> Calls:
    """Block-wise 8 bits (dynamic map, blocks of 256) against bitsandbytes' CPU operators; all return new tensors."""
    import bitsandbytes  # noqa: F401  registers the operators
    import torch

    from reference.kernels.quantize import dequantize_blockwise, dynamic_map, quantize_blockwise

    keep_freed_memory()
    code, block = dynamic_map(True), 256
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    codes, absmax = quantize_blockwise(x, code=code, block=block)
    out = dequantize_blockwise(codes, absmax, code, block=block, shape=(n,))
    assert (out - x).abs().max() <= 0.0072 * absmax.max()
    peer = torch.ops.bitsandbytes
    if what == "quantize":
        return {
            "numba": lambda: quantize_blockwise(x, code=code, block=block),
            "bitsandbytes": lambda: peer.quantize_blockwise(x, code, block),
        }
    return {
        "numba": lambda: dequantize_blockwise(codes, absmax, code, block=block, shape=(n,)),
        "bitsandbytes": lambda: peer.dequantize_blockwise(codes, absmax, code, block, torch.float32),
    }


def step_calls(n: int, threads: int | str, rivals: tuple[str, ...]) -> Calls:
    """The fused AdamW8bit step of the suite, and its other arms."""
    import numpy as np

    from suites.quantization.blockwise_8bit_optimizers.step import step_error, step_problem

    problem = step_problem(n)
    inputs = problem.inputs(np.random.default_rng(0))
    calls = {}
    for name in ("fused_8bit", *rivals):
        arm = problem.arms[name]
        buffers = arm.buffers(*inputs)
        arm.run(*inputs, *buffers)
        if name == "fused_8bit":
            assert step_error(arm.outputs(*buffers), problem.truth(*inputs)) <= problem.tolerance
        calls[name] = lambda arm=arm, buffers=buffers: arm.run(*inputs, *buffers)
    return calls


# --- project


def lowrank_calls(m: int, n: int, rank: int, threads: int | str) -> Calls:
    """Project, Adam, project back: the fastest backend here against the same maths in eager torch, op by op."""
    import numpy as np
    import torch

    from reference.kernels import project
    from reference.kernels.project import truth

    random = np.random.default_rng(0)
    G_, W, M_, V = (torch.from_numpy(random.standard_normal(shape).astype(np.float32))
                    for shape in ((m, n), (m, n), (m, rank), (m, rank)))
    V.square_().add_(0.01)
    P = torch.linalg.qr(torch.from_numpy(random.standard_normal((n, rank)).astype(np.float32))).Q.contiguous()
    settings: dict[str, Any] = {"side": "right", "step": 10, "lr": 1e-3, "alpha": 0.25, "weight_decay": 0.1}
    W0, M0, V0 = W.clone(), M_.clone(), V.clone()
    project.lowrank_adam_step(W0, G_, P, M0, V0, backend="numba", **settings)
    exact = truth.lowrank_adam_step(*(t.numpy() for t in (W, G_, P, M_, V)), betas=(0.9, 0.999), eps=1e-6, **settings)
    assert np.abs(W0.numpy() - exact[0]).max() <= 1e-5 * np.abs(exact[0]).max()

    def eager() -> None:
        R = G_ @ P
        M_.mul_(0.9).add_(R, alpha=0.1)
        V.mul_(0.999).addcmul_(R, R, value=0.001)
        N = M_ / (V.sqrt() + 1e-6)
        rate = settings["lr"] * math.sqrt(1 - 0.999**10) / (1 - 0.9**10) * settings["alpha"]
        W.add_(N @ P.mT, alpha=-rate)
        W.mul_(1 - settings["lr"] * settings["weight_decay"])

    return {"numba": lambda: project.lowrank_adam_step(W0, G_, P, M0, V0, backend="numba", **settings), "eager": eager}


def dct_calls(n: int, rank: int, threads: int | str) -> Calls:
    """A DCT refresh against a thin SVD."""
    import numpy as np
    import torch

    from reference.kernels import project
    from reference.kernels.project.refresh import gradient_like

    A = gradient_like(n, n, np.random.default_rng(0))
    return {
        "dct": lambda: project.dct_select(A, rank, "right", by="fft"),
        "svd": lambda: torch.linalg.svd(A, full_matrices=False),
    }


def dct_energy(share: float) -> float:
    """Energy that DCT selection keeps, over the SVD's at the same rank: the mean over a real model's gradients."""
    from statistics import mean

    from reference.kernels import project
    from reference.kernels.project import dct_basis, truth
    from reference.methods.projection.pretraining import Setting, record_gradients

    def kept(G: Any) -> float:
        side, rank = project.small_side(*G.shape), round(share * min(G.shape))
        _, columns = project.dct_select(G, rank, side, norm="l2")
        P = dct_basis(min(G.shape))[:, columns.long()]
        return truth.captured_energy(G.numpy(), P.numpy(), side) / truth.best_energy(G.numpy(), rank)

    found = record_gradients(Setting("M", 100, data_seed=0, init_seed=0), 3e-3, (25, 50, 75, 99))
    return mean(kept(G) for layers in found.values() for G in layers.values())


ROWS = (
    *(Row(f"two-pass softmax 2^{p} {t}: torch", softmax_calls, {"rows": 1, "n": 2**p, "rivals": ("torch",)}, t, 1.5)
      for p in (25, 26) for t in (1, "all")),
    *(Row(f"two-pass softmax 2^{p} {t}: best three-pass", softmax_calls,
          {"rows": 1, "n": 2**p, "rivals": ("three_pass_recompute", "three_pass_reload")}, t, 1.2)
      for p in (25, 26) for t in (1, "all")),
    *(Row(f"two-pass softmax 2^{p} {t}: read + read-and-write streams", softmax_calls,
          {"rows": 1, "n": 2**p, "rivals": ("read", "read and write")}, t, 0.7, "sum")
      for p in (25, 26) for t in (1, "all")),
    *(Row(f"softmax {r}x{n} all: torch", softmax_calls, {"rows": r, "n": n, "rivals": ("torch",)}, "all", 1.0)
      for r, n in ((4096, 128), (256, 32000))),
    Row("quantize 2^24 1: bitsandbytes", quantize_calls, {"n": 2**24, "what": "quantize"}, 1, 6.0),
    Row("dequantize 2^24 1: bitsandbytes", quantize_calls, {"n": 2**24, "what": "dequantize"}, 1, 3.0),
    *(Row(f"AdamW8bit step {n // 10**6}M 1: bitsandbytes", step_calls,
          {"n": n, "rivals": ("bitsandbytes_8bit",)}, 1, 10.0) for n in (4 * 10**6, 5 * 10**7)),
    *(Row(f"AdamW8bit step {n // 10**6}M all: torch AdamW fused float32", step_calls,
          {"n": n, "rivals": ("torch_fused",)}, "all", 0.6) for n in (4 * 10**6, 5 * 10**7)),
    Row("GaLore step 2048x2048 r512 1: eager torch", lowrank_calls, {"m": 2048, "n": 2048, "rank": 512}, 1, 1.2),
    Row("GaLore step 2048x2048 r512 all: eager torch", lowrank_calls, {"m": 2048, "n": 2048, "rank": 512}, "all", 1.2),
    *(Row(f"DCT refresh {n} r128 1: thin SVD", dct_calls, {"n": n, "rank": 128}, 1, 20.0) for n in (1024, 2048)),
)

# Not a time: (name, what to compute, its arguments, target).
FACTS = ((
    "DCT refresh, captured energy over the SVD's, gradients of a character model (M), r = n/8",
    dct_energy, {"share": 1 / 8}, 0.9,
),)


def measure(row: Row, process: int, rounds: int) -> tuple[dict[str, float], list[float]]:
    """(ns per call by name, ratios by round) of one process; runs in an interpreter of its own."""
    limit_threads(row.threads)
    calls = row.build(threads=row.threads, **row.arguments)
    limit_threads(row.threads)
    benches = [Bench(name, (call,)) for name, call in calls.items()]
    times = {name: per_round(samples) for name, samples in
             run_rounds(benches, Measure(processes=1, rounds=rounds, min_sample_ms=5), process, process).items()}
    ours, *rivals = calls
    combine = min if row.rival == "min" else sum
    ratios = [combine(times[name][unit] for name in rivals) / times[ours][unit] for unit in times[ours]]
    return {name: median(by_round.values()) for name, by_round in times.items()}, ratios


def run_row(row: Row, processes: int, rounds: int) -> dict[str, Any]:
    """All processes of a row, one after the other."""
    context = multiprocessing.get_context("spawn")
    found = []
    for process in range(processes):
        with context.Pool(1) as pool:
            found.append(pool.apply(measure, (row, process, rounds)))
    medians = [median(ratios) for _, ratios in found]
    return {
        "row": row.name, "ratio": median(ratio for _, ratios in found for ratio in ratios), "low": min(medians),
        "high": max(medians), "target": row.target,
        "ns": {name: median(times[name] for times, _ in found) for name in found[0][0]},
    }


def main() -> int:
    # As in the harness's workers: a pool that spins after its call would take a core from the next arm's.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    below = 0
    for row in ROWS:
        if not all(word in row.name for word in options.words):
            continue
        found = run_row(row, options.processes, options.rounds)
        below += found["ratio"] < row.target
        if options.json:
            print(json.dumps(found), flush=True)
            continue
        word = "met  " if found["ratio"] >= row.target else "BELOW"
        times = ", ".join(f"{name} {ns / 1e6:.3g} ms" for name, ns in found["ns"].items())
        spread = f"[{found['low']:.2f}, {found['high']:.2f}]"
        print(f"{word} {found['ratio']:6.2f} {spread:<14} >= {row.target:<4} {row.name}  ({times})", flush=True)
    for name, compute, arguments, target in FACTS:
        if all(word in name for word in options.words):
            value = compute(**arguments)
            below += value < target
            fact = json.dumps({"row": name, "value": value, "target": target})
            print(fact if options.json else f"{'met  ' if value >= target else 'BELOW'} {value:6.2f} {'':<14} "
                  f">= {target:<4} {name}", flush=True)
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
