"""GaLore-AdamW: the official package, an independent derivation, and the identities that any GaLore must obey."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from reference.methods.projection.galore import GaLoreAdamW, step_during_backward

TYPES = ("std", "reverse_std", "left", "right", "full")
SHAPES = ((12, 30), (30, 12), (16, 16))


def stream(shape, steps=20, seed=0):
    random = torch.Generator().manual_seed(seed)
    # a drifting low-rank part and noise: singular values well apart, as a derivation in other arithmetic needs
    m, n = shape
    base = torch.randn(m, n, generator=random)
    return [base + 0.5 * torch.randn(m, n, generator=random) for _ in range(steps)]


def run(optimizer, parameter, gradients):
    for G in gradients:
        parameter.grad = G.clone()
        optimizer.step()
    return parameter.detach()


def numpy_galore(W, gradients, *, rank, gap, scale, proj_type, lr, betas, eps, weight_decay):
    """GaLore in float64 NumPy, written from Algorithm 2 with projection matrices, independent of the package."""
    W = W.astype(np.float64)
    m, n = W.shape
    left = {"std": m < n, "reverse_std": m >= n, "left": True, "right": False, "full": True}[proj_type]
    right = proj_type == "full" or not left
    M = V = 0.0
    for t, G in enumerate(gradients):
        if t % gap == 0:
            # eigenvectors of the Gram matrices instead of an SVD
            L = np.linalg.eigh(G @ G.T)[1][:, ::-1][:, :rank] if left else np.eye(m)
            K = np.linalg.eigh(G.T @ G)[1][:, ::-1][:, :rank] if right else np.eye(n)
            # the sign of a singular vector is free, but the kept moments see it: take the library's
            U, _, Vt = (item.numpy() for item in torch.linalg.svd(torch.from_numpy(G), full_matrices=False))
            L = L * np.sign(np.sum(L * U[:, :rank], axis=0)) if left else L
            K = K * np.sign(np.sum(K * Vt[:rank].T, axis=0)) if right else K
        R = L.T @ G @ K
        M = betas[0] * M + (1 - betas[0]) * R
        V = betas[1] * V + (1 - betas[1]) * R * R
        m_hat, v_hat = M / (1 - betas[0] ** (t + 1)), V / (1 - betas[1] ** (t + 1))
        N = m_hat / (np.sqrt(v_hat) + eps / math.sqrt(1 - betas[1] ** (t + 1)))
        W = W - lr * scale * (L @ N @ K.T)
        W = W - lr * weight_decay * W
    return W


@pytest.mark.parametrize("proj_type", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_twenty_steps_match_an_independent_derivation(proj_type, shape):
    """In float64: in float32 an entry of R near zero turns rounding into a visible difference of M / sqrt(V)."""
    gradients = [G.double() for G in stream(shape, 20, seed=7)]
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()
    p = torch.nn.Parameter(start.clone())
    optimizer = GaLoreAdamW([{"params": [p], "rank": 5, "update_proj_gap": 6, "proj_type": proj_type}],
                            lr=0.01, weight_decay=0.1)
    got = run(optimizer, p, gradients)
    want = numpy_galore(start.numpy(), [G.numpy() for G in gradients], rank=5, gap=6, scale=0.25, proj_type=proj_type,
                        lr=0.01, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.1)
    assert np.abs(got.numpy() - want).max() <= 1e-8


@pytest.mark.peer
@pytest.mark.parametrize("proj_type", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_twenty_steps_match_galore_torch(proj_type, shape):
    galore_torch = pytest.importorskip("galore_torch")
    gradients = stream(shape)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    group = {"rank": 5, "update_proj_gap": 6, "scale": 0.25, "proj_type": proj_type}
    mine = GaLoreAdamW([{"params": [ours], **group}], lr=0.01, weight_decay=0.1)
    peer = galore_torch.GaLoreAdamW([{"params": [theirs], **group}], lr=0.01, weight_decay=0.1,
                                    no_deprecation_warning=True)
    difference = (run(mine, ours, gradients) - run(peer, theirs, gradients)).abs().max()
    assert difference <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_refreshed_every_step_is_adam_of_the_rotated_gradient(shape):
    """r = min(m, n), T = 1, first step: the update is U AdamStep(U^T G)."""
    G = stream(shape, 1)[0]
    start = torch.zeros(shape)
    p = torch.nn.Parameter(start.clone())
    run(GaLoreAdamW([{"params": [p], "rank": min(shape), "update_proj_gap": 1, "scale": 1.0}], lr=0.01), p, [G])
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    left = shape[0] < shape[1]
    rotated = torch.nn.Parameter(torch.zeros_like(U.mT @ G if left else G @ Vh.mT))
    adam = torch.optim.AdamW([rotated], lr=0.01, eps=1e-12, weight_decay=0.0)
    run(adam, rotated, [U.mT @ G if left else G @ Vh.mT])
    back = U @ rotated.detach() if left else rotated.detach() @ Vh
    # an entry of R near zero makes eps visible, so the two steps agree only up to it
    entries = rotated.grad.abs() > 1e-3
    assert entries.float().mean() > 0.9
    assert (p.detach() - back).norm() <= 0.05 * back.norm()


def test_transposed_problem_gives_the_transposed_weights():
    """With one subspace: a refresh may flip a vector's sign, which a direction does not see but kept moments do."""
    gradients = [G.double() for G in stream((12, 30))]
    start = torch.randn(12, 30, generator=torch.Generator().manual_seed(2)).double()
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.mT.contiguous())
    settings = {"rank": 4, "update_proj_gap": None}
    a = run(GaLoreAdamW([{"params": [p], "proj_type": "left", **settings}], lr=0.01), p, gradients)
    b = run(GaLoreAdamW([{"params": [q], "proj_type": "right", **settings}], lr=0.01), q, [G.mT for G in gradients])
    assert (a - b.mT).abs().max() < 1e-9


@pytest.mark.parametrize("side", ["left", "right"])
def test_projecting_a_rank_r_gradient_loses_nothing_for_sgd(side):
    from reference.kernels import project as kernels

    random = torch.Generator().manual_seed(0)
    G = torch.randn(20, 3, generator=random) @ torch.randn(3, 14, generator=random)
    P = kernels.svd_basis(G, 3, side)
    W = torch.zeros(20, 14)
    kernels.update_weight(W, kernels.project(G, P, side), P, side, step=0.1)
    torch.testing.assert_close(W, -0.1 * G, atol=1e-5, rtol=1e-4)


def test_planted_fault_a_transposed_basis_leaves_the_trajectory():
    """What the comparison above is worth: P used for P^T (square case) must miss the derivation by far."""
    from reference.kernels import project as kernels

    G = stream((16, 16), 1)[0]
    P = kernels.svd_basis(G, 16, "left")
    right = kernels.back_project(kernels.project(G, P, "left"), P, "left")
    wrong = kernels.back_project(kernels.project(G, P, "left"), P.mT, "left")
    assert (right - G).abs().max() < 1e-4
    assert (wrong - G).abs().max() > 0.1


def test_groups_without_rank_are_plain_adamw_with_decay_after_the_step():
    gradients = stream((6, 5))
    start = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
    p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    a = run(GaLoreAdamW([p], lr=0.01, eps=1e-12), p, gradients)
    b = run(torch.optim.AdamW([q], lr=0.01, eps=1e-12, weight_decay=0.0), q, gradients)
    torch.testing.assert_close(a, b)


def test_scale_multiplies_the_update_and_leaves_decay_and_plain_groups_alone():
    G = stream((6, 9), 1)[0]

    def step(scale):
        p, q = torch.nn.Parameter(torch.ones(6, 9)), torch.nn.Parameter(torch.ones(6, 9))
        optimizer = GaLoreAdamW([{"params": [p], "rank": 3, "scale": scale}, {"params": [q]}], lr=0.1, weight_decay=0.5)
        p.grad, q.grad = G.clone(), G.clone()
        optimizer.step()
        return p.detach() / (1 - 0.05) - 1, q.detach()

    small, plain = step(0.25)
    large, same = step(0.5)
    torch.testing.assert_close(2 * small, large)
    assert torch.equal(plain, same)


def test_the_subspace_is_frozen_between_refreshes_and_moments_survive_them():
    gradients = stream((12, 30), 9)
    p = torch.nn.Parameter(torch.zeros(12, 30))
    optimizer = GaLoreAdamW([{"params": [p], "rank": 4, "update_proj_gap": 4}], lr=0.01)
    bases, moments = [], []
    for G in gradients:
        p.grad = G
        optimizer.step()
        bases.append(optimizer.state[p]["subspace"].P.clone())
        moments.append(optimizer.state[p]["moments"].M.norm().item())
    assert [bool(torch.equal(a, b)) for a, b in itertools.pairwise(bases)] == [
        True, True, True, False, True, True, True, False]
    assert moments[4] > 0.5 * moments[3]


def test_no_gap_means_one_choice_for_ever():
    gradients = stream((12, 30), 12)
    p = torch.nn.Parameter(torch.zeros(12, 30))
    optimizer = GaLoreAdamW([{"params": [p], "rank": 4, "update_proj_gap": None}], lr=0.01)
    run(optimizer, p, gradients[:1])
    first = optimizer.state[p]["subspace"].P.clone()
    run(optimizer, p, gradients[1:])
    assert torch.equal(first, optimizer.state[p]["subspace"].P)


@pytest.mark.parametrize("rank", [8, 40])
def test_a_rank_beyond_the_small_side_is_capped_and_keeps_the_side(rank):
    p = torch.nn.Parameter(torch.zeros(8, 20))
    optimizer = GaLoreAdamW([{"params": [p], "rank": rank, "update_proj_gap": 1}], lr=0.01)
    run(optimizer, p, stream((8, 20), 3))
    subspace = optimizer.state[p]["subspace"]
    assert subspace.side == "left"
    assert subspace.P.shape == (8, 8)


@pytest.mark.parametrize("projector", ["svd", "gram", "range_finder", "random", "dct"])
def test_every_projector_reaches_the_minimum_of_a_quadratic(projector):
    target = torch.randn(10, 24, generator=torch.Generator().manual_seed(5))
    p = torch.nn.Parameter(torch.zeros(10, 24))
    group = {"params": [p], "rank": 4, "update_proj_gap": 5, "scale": 1.0, "projector": projector}
    optimizer = GaLoreAdamW([group], lr=0.05, seed=3)
    for _ in range(400):
        p.grad = p.detach() - target
        optimizer.step()
    assert (p.detach() - target).square().mean() < 0.02 * target.square().mean()


def test_random_projectors_repeat_with_the_seed_and_differ_between_parameters():
    def trained(seed):
        p, q = torch.nn.Parameter(torch.zeros(10, 24)), torch.nn.Parameter(torch.zeros(10, 24))
        optimizer = GaLoreAdamW([{"params": [p, q], "rank": 4, "projector": "random"}], lr=0.05, seed=seed)
        G = stream((10, 24), 1)[0]
        p.grad, q.grad = G.clone(), G.clone()
        optimizer.step()
        return p.detach(), q.detach()

    torch.testing.assert_close(trained(1), trained(1), rtol=0, atol=0)
    assert not torch.equal(trained(1)[0], trained(2)[0])
    assert not torch.equal(*trained(1))


def test_eight_bit_moments_stay_close_to_full_precision():
    gradients = stream((64, 96), 20)
    start = torch.randn(64, 96, generator=torch.Generator().manual_seed(6))
    results = []
    for bits in (32, 8):
        p, q = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
        optimizer = GaLoreAdamW([{"params": [p], "rank": 48, "scale": 1.0}, {"params": [q]}], lr=0.01, bits=bits)
        for G in gradients:
            p.grad, q.grad = G.clone(), G.clone()
            optimizer.step()
        results.append((p.detach() - start, q.detach() - start))
    for full, coded in zip(*results, strict=True):
        assert 0 < (full - coded).norm() < 0.1 * full.norm()


def test_per_layer_steps_equal_ordinary_steps_and_free_the_gradients():
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    second = copy.deepcopy(first)
    x, y = torch.randn(5, 8), torch.randn(5, 4)

    def optimizer_of(model):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        groups = [{"params": matrices, "rank": 2, "update_proj_gap": 3}, {"params": vectors}]
        return GaLoreAdamW(groups, lr=0.01, weight_decay=0.1)

    plain, hooked = optimizer_of(first), optimizer_of(second)
    handles = step_during_backward(hooked)
    for _ in range(8):
        plain.zero_grad()
        torch.nn.functional.mse_loss(first(x), y).backward()
        plain.step()
        torch.nn.functional.mse_loss(second(x), y).backward()
        assert all(p.grad is None for p in second.parameters())
        hooked.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    for handle in handles:
        handle.remove()


def test_a_saved_state_continues_the_same_trajectory():
    gradients = stream((12, 30), 10)
    p = torch.nn.Parameter(torch.zeros(12, 30))
    optimizer = GaLoreAdamW([{"params": [p], "rank": 4, "update_proj_gap": 4}], lr=0.01)
    run(optimizer, p, gradients[:6])
    q = torch.nn.Parameter(p.detach().clone())
    other = GaLoreAdamW([{"params": [q], "rank": 4, "update_proj_gap": 4}], lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.testing.assert_close(run(optimizer, p, gradients[6:]), run(other, q, gradients[6:]))


def test_a_vector_in_a_projected_group_is_refused():
    with pytest.raises(ValueError, match="matrices only"):
        GaLoreAdamW([{"params": [torch.nn.Parameter(torch.zeros(5))], "rank": 2}])
