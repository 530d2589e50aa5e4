"""Random projection whose matrix is never stored: its entries are computed from a seed where they are needed.

Entry (k, j) of Omega is word j mod 4 of Philox4x32-10 (Salmon et al. 2011) at counter (k, j // 4, step, 0) and key
``seed``, made into a number with mean 0 and variance 1/r. So E[Omega Omega^T] = I and |Omega^T x|^2 = |x|^2 on average.
A shorter matrix is the top of a longer one, and a smaller rank takes the first columns, scaled. The words are the same
bits on every backend. ``rademacher`` and ``sparse`` entries are, too; ``gaussian`` ones agree within a few units in the
last place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from reference.kernels.project import blas, dispatch
from reference.kernels.project.eager import Side
from reference.kernels.project.workspace import Workspace

Kind = Literal["gaussian", "rademacher", "sparse"]
KINDS = ("gaussian", "rademacher", "sparse")

# On a device a panel is the work of one launch and one product, which should fill it.
_DEVICE_PANEL_BYTES = 2**26
# sqrt of 1 / E[entry^2] before scaling: sparse entries are not 0 with probability 1/3 (Achlioptas 2003)
_SPREAD = {"gaussian": 1.0, "rademacher": 1.0, "sparse": 3.0**0.5}


@dataclass(frozen=True)
class Sketch:
    """Which random matrix: ``seed`` (64 bits) and ``step`` (32 bits) choose it, ``kind`` its distribution.

    ``gaussian`` is N(0, 1/r) by Box and Muller, at most 5.77 standard deviations from 0. ``rademacher`` is
    +-sqrt(1/r). ``sparse`` is +-sqrt(3/r) with probability 1/6 each, else 0.
    """

    seed: int
    step: int = 0
    kind: Kind = "gaussian"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64 or not 0 <= self.step < 2**32:
            raise ValueError(f"seed must be in [0, 2^64) and step in [0, 2^32), got {self.seed} and {self.step}")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")

    def scale(self, rank: int) -> float:
        """The largest entry of ``rademacher`` and ``sparse``, the standard deviation of ``gaussian``."""
        return _SPREAD[self.kind] * rank**-0.5


def random_matrix(
    length: int,
    rank: int,
    sketch: Sketch,
    *,
    rows: slice = slice(None),
    columns: slice = slice(None),
    device: torch.device | str = "cpu",
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Omega (``length`` x ``rank``), or a block of it, in float32.

    ``columns`` starts at a multiple of 4. ``out`` is contiguous and of the block's shape. Raises ValueError otherwise.
    """
    (top, bottom, one), (left, right, other) = rows.indices(length), columns.indices(rank)
    shape = (max(0, bottom - top), max(0, right - left))
    if one != 1 or other != 1 or left % 4:
        raise ValueError(f"a block has step 1 and starts at a column that is a multiple of 4, got {rows}, {columns}")
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=device)
    if tuple(out.shape) != shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"out must be contiguous float32 of shape {shape}, got {out.dtype} of {tuple(out.shape)}")
    if out.numel():
        dispatch.module(backend, out).fill_random(out, top, left, sketch, sketch.scale(rank))
    return out


def random_project(
    G: torch.Tensor,
    rank: int,
    side: Side,
    sketch: Sketch,
    *,
    out: torch.Tensor | None = None,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """R = Omega^T G (left, r x n) or G Omega (right, m x r), with Omega on G's device made a panel at a time.

    ``rank`` may exceed the projected side. float16 and bfloat16 are projected in float32 and rounded once; float64 is
    projected in float64 with the same float32 entries.
    """
    A = _wide(G)
    length = G.shape[0] if side == "left" else G.shape[1]
    shape = (rank, G.shape[1]) if side == "left" else (G.shape[0], rank)
    R = out if out is not None and out.dtype == A.dtype else A.new_empty(shape)
    scratch = Workspace() if workspace is None else workspace
    width = panel(length, rank, G.device)
    for start in range(0, rank, width):
        part = slice(start, min(rank, start + width))
        omega = _block(length, rank, sketch, slice(None), part, A, scratch, backend)
        if side == "left":
            blas.matmul(omega.mT, A, out=R[part])
        else:
            blas.matmul(A, omega, out=R[:, part])
    return _returned(R, out, G)


def random_back_project(
    N: torch.Tensor,
    length: int,
    side: Side,
    sketch: Sketch,
    *,
    out: torch.Tensor | None = None,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Omega N (left) or N Omega^T (right), with ``length`` rows or columns: the transpose of :func:`random_project`."""
    A = _wide(N)
    rank = N.shape[0] if side == "left" else N.shape[1]
    shape = (length, N.shape[1]) if side == "left" else (N.shape[0], length)
    full = out if out is not None and out.dtype == A.dtype else A.new_empty(shape)
    scratch = Workspace() if workspace is None else workspace
    width = panel(rank, length, N.device)
    for start in range(0, length, width):
        part = slice(start, min(length, start + width))
        omega = _block(length, rank, sketch, part, slice(None), A, scratch, backend)
        if side == "left":
            blas.matmul(omega, A, out=full[part])
        else:
            blas.matmul(A, omega.mT, out=full[:, part])
    return _returned(full, out, N)


def panel(whole: int, cut: int, device: torch.device) -> int:
    """How much of ``cut`` one panel of Omega takes, when it takes all of ``whole``; a multiple of 64 or all."""
    size = blas.PANEL_BYTES * torch.get_num_threads() if device.type == "cpu" else _DEVICE_PANEL_BYTES
    return max(1, min(cut, max(64, size // (4 * max(1, whole)) // 64 * 64)))


def workspace_bytes(m: int, n: int, rank: int, side: Side) -> int:
    """What :func:`random_project` allocates for a float32 G on the CPU beyond its result: a panel, and BLAS's share."""
    length = m if side == "left" else n
    width = panel(length, rank, torch.device("cpu"))
    if side == "left":
        return 4 * length * width + blas.workspace_bytes(width, m, n, into=True, contiguous=False)
    return 4 * length * width + blas.workspace_bytes(m, n, width, into=True)


def _block(
    length: int, rank: int, sketch: Sketch, rows: slice, columns: slice, like: torch.Tensor, scratch: Workspace,
    backend: str,
) -> torch.Tensor:
    shape = len(range(length)[rows]), len(range(rank)[columns])
    out = scratch.take("omega", shape, torch.float32, like.device)
    return random_matrix(length, rank, sketch, rows=rows, columns=columns, out=out, backend=backend).to(like.dtype)


def _wide(X: torch.Tensor) -> torch.Tensor:
    return X if X.dtype in (torch.float32, torch.float64) else X.float()


def _returned(found: torch.Tensor, out: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    if out is None:
        return found.to(like.dtype)
    return out if out is found else out.copy_(found)
