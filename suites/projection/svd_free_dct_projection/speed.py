"""The speed experiments: a new subspace by every method, the transform alone, the selection alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Problem, SkipArm
from reference.kernels import project as kernels
from reference.kernels.backend import missing
from reference.kernels.project import cost, truth
from reference.kernels.project.dispatch import SOURCE
from reference.kernels.project.refresh import REFRESHES, Refreshed, gradient_like, refresh_error

# the SVD's time grows with n^3, and so does that of proving it right
LARGEST_SVD = 4096


def refresh_problem(n: int, methods: Mapping[str, tuple[str, int]], device: str) -> Problem:
    """Arms by name as (method, rank), each held against its method's own promise, see ``refresh_error``.

    The DCT matrix is stored beforehand, as an optimizer stores it.
    """
    table = kernels.dct_matrix(n, device=device)
    return Problem(
        inputs=lambda random: (gradient_like(n, n, random).to(device),),
        buffers=lambda G: (),
        truth=lambda G: G.double().numpy(),
        error=error_of_refresh,
        arms={label: refresh_arm(n, name, rank, table) for label, (name, rank) in methods.items()},
        input_bytes=4 * n * n,
        tolerance=1e-4,
    )


def refresh_arm(n: int, name: str, rank: int, table: torch.Tensor) -> Arm | SkipArm:
    """A method whose call returns the projected gradient, the basis or its columns, and the method's name."""
    if name == "svd" and n > LARGEST_SVD:
        return SkipArm(f"the SVD is compared up to n = {LARGEST_SVD}: its time grows with n^3")
    method = REFRESHES[name]

    def run(G: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, str]:
        found = method.run(G, rank, table)
        return found.R, found.basis, name

    return Arm(
        run,
        bytes_moved=cost.refresh_bytes(n, n, rank) + (4.0 * n * n if name == "dct_matmul" else 0.0),
        flops=method.flops(n, n, rank),
        workspace_bytes=fft_workspace_bytes(n) if name == "dct_fft" and table.device.type == "cpu" else None,
    )


def fft_workspace_bytes(n: int) -> float:
    """The declared workspace, and what the FFT itself may take: as much again as the reordered rows."""
    return float(cost.dct_select_workspace_bytes(n, n) + 4 * n * n)


def error_of_refresh(found: tuple[Any, Any, str], G: np.ndarray) -> float:
    """``refresh_error`` of what an arm returned."""
    R, basis, name = found
    by = {"dct_matmul": "matmul", "dct_fft": "fft"}.get(name)
    return refresh_error(Refreshed(R, kernels.small_side(*G.shape), basis, by), G, REFRESHES[name].best)


def transform_problem(n: int) -> Problem:
    """A Q by GEMM with the stored matrix and A Q^T by FFT: different bases, each held against SciPy's."""
    table = kernels.dct_matrix(n)
    return Problem(
        inputs=lambda random: (gradient_like(n, n, random),),
        buffers=lambda A: (),
        truth=lambda A: {by: truth.dct_rows(A.numpy(), by) for by in ("matmul", "fft")},
        error=lambda found, exact: float(
            np.abs(found[0].double().numpy() - exact[found[1]]).max() / np.abs(exact[found[1]]).max()),
        arms={
            "matmul": Arm(lambda A: (kernels.dct_project(A, "matmul", table), "matmul"),
                          bytes_moved=4.0 * 3 * n * n, flops=cost.dct_matmul_flops(n, n)),
            "fft": Arm(lambda A: (kernels.dct_project(A, "fft"), "fft"),
                       bytes_moved=4.0 * 2 * n * n, flops=cost.dct_fft_flops(n, n)),
        },
        input_bytes=4 * n * n,
        tolerance=1e-5,
    )


def select_problem(n: int, rank: int, device: str) -> Problem:
    """What follows the transform: l1 norms of n columns, the ``rank`` largest, and these columns copied."""

    def arm(backend: str) -> Arm | SkipArm:
        if reason := missing(backend, device, SOURCE):
            return SkipArm(reason)

        def run(S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            columns = kernels.select_top(S, rank, "l1", backend=backend)
            return kernels.gather_columns(S, columns, backend=backend), columns

        return Arm(run, bytes_moved=cost.select_bytes(n, n, rank), flops=float(n * n))

    return Problem(
        inputs=lambda random: (gradient_like(n, n, random).to(device),),
        buffers=lambda S: (),
        truth=lambda S: S.double().numpy(),
        error=lambda found, S: error_of_selection(found, S, rank),
        arms={name: arm(name) for name in ("cuda", "triton", "eager")},
        input_bytes=4 * n * n,
        tolerance=1e-6,
    )


def error_of_selection(found: tuple[torch.Tensor, torch.Tensor], S: np.ndarray, rank: int) -> float:
    """The larger of two faults: a copied entry that is off, and the norm that the best ``rank`` columns had more."""
    kept, columns = found[0].double().numpy(), found[1].numpy()
    if kept.shape != (S.shape[0], rank) or len(np.unique(columns)) != rank:
        return float("inf")
    norms = np.abs(S).sum(axis=0)
    stray = np.abs(kept - S[:, columns]).max() / np.abs(S).max()
    return float(np.maximum(stray, 1.0 - norms[columns].sum() / np.sort(norms)[-rank:].sum()))


def rank_of(point: Mapping[str, Any]) -> int:
    """The point's rank: a number, or ``quarter`` of n."""
    return point["n"] // 4 if point["rank"] == "quarter" else int(point["rank"])
