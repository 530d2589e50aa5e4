import math

import pytest
import torch

from reference.testbeds import char_lm


@pytest.fixture
def windows(doc):
    return doc.train[: 8 * 65].long().view(8, 65)


@pytest.mark.parametrize(("size", "count"), [("S", 120_576), ("M", 834_304), ("P", 220_544)])
def test_sizes(size, count):
    assert char_lm.parameter_count(char_lm.make(size, 0)) == count


def test_shapes(windows):
    model = char_lm.make("S", 0)
    assert model(windows[:, :-1]).shape == (8, 64, 128)
    assert model.loss(windows).shape == ()


def test_p_has_the_adaptable_matrices_that_fine_tuning_counts_on():
    shapes = [tuple(p.shape) for _, p in char_lm.parameter_roles(char_lm.make("P", 0).named_parameters()).linears]
    assert sorted(shapes) == [(64, 64)] * 16 + [(64, 256)] * 4 + [(256, 64)] * 4


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("size", ["S", "M", "P"])
def test_an_untrained_model_knows_nothing(size, stable, windows):
    loss = char_lm.make(size, 3, stable_embedding=stable).loss(windows).item()
    assert abs(loss - math.log(128)) < 0.1


def test_the_future_is_not_seen(windows):
    model = char_lm.make("S", 0)
    changed = windows[:, :-1].clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 128
    before, after = model(windows[:, :-1]), model(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])


@pytest.mark.parametrize("stable", [False, True])
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(stable, windows):
    model = char_lm.make("S", 0, stable_embedding=stable)
    model.loss(windows).backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_gradient_agrees_with_finite_differences(windows):
    model = char_lm.make("S", 0, context=8, width=16, stable_embedding=True).double()
    tokens = windows[:2, :9]
    model.loss(tokens).backward()
    for name in ("token_embedding.weight", "blocks.1.attention.query.weight", "blocks.0.mlp.down.weight"):
        parameter = model.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            losses = []
            for step in (1e-5, -2e-5):
                parameter += step * direction
                losses.append(model.loss(tokens).item())
            parameter += 1e-5 * direction
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope == pytest.approx((parameter.grad * direction).sum().item(), rel=1e-5)


def test_equal_seeds_give_equal_values_and_others_do_not():
    first, again, other = (dict(char_lm.make("S", seed).named_parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = [name for name in first if not torch.equal(first[name], other[name])]
    assert len(differing) == sum(p.ndim > 1 for p in first.values())


def test_variants_of_one_seed_share_all_but_the_stable_embedding():
    plain = dict(char_lm.make("S", 0).named_parameters())
    stable = dict(char_lm.make("S", 0, stable_embedding=True).named_parameters())
    assert set(stable) - set(plain) == {"embedding_norm.weight", "embedding_norm.bias"}
    assert [name for name in plain if not torch.equal(plain[name], stable[name])] == ["token_embedding.weight"]


def test_the_stable_embedding_is_xavier_uniform_and_its_output_is_normalised(windows):
    model = char_lm.make("S", 0, stable_embedding=True)
    weight, bound = model.token_embedding.weight, math.sqrt(6 / (128 + 64))
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    rows = model.embedding_norm(model.token_embedding(windows))
    torch.testing.assert_close(rows.mean(-1), torch.zeros(8, 65), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.std(-1, correction=0), torch.ones(8, 65), atol=1e-3, rtol=0)


@pytest.mark.parametrize("stable", [False, True])
def test_roles_cover_every_parameter_once(stable):
    model = char_lm.make("S", 0, stable_embedding=stable)
    roles = char_lm.parameter_roles(model.named_parameters())
    named = [pair for part in (roles.linears, roles.embeddings, roles.head, roles.norms, roles.biases) for pair in part]
    assert sorted(name for name, _ in named) == sorted(name for name, _ in model.named_parameters())
    assert len(roles.linears) == 12
    assert [name for name, _ in roles.embeddings] == ["token_embedding.weight", "position_embedding.weight"]
    assert [name for name, _ in roles.head] == ["head.weight"]
    assert all("norm" in name for name, _ in roles.norms)
    assert len(roles.norms) == 2 * (5 + stable)


def test_options():
    assert not char_lm.parameter_roles(char_lm.make("S", 0, bias=False).named_parameters()).biases
    assert char_lm.make("S", 0, context=32).position_embedding.weight.shape == (32, 64)


def test_what_does_not_exist_is_refused():
    with pytest.raises(KeyError, match="S, M, P"):
        char_lm.make("XL", 0)
    with pytest.raises(TypeError, match="dropout"):
        char_lm.make("S", 0, dropout=True)
    with pytest.raises(ValueError, match="3 heads"):
        char_lm.make("S", 0, heads=3)
    with pytest.raises(ValueError, match="context"):
        char_lm.make("S", 0)(torch.zeros(1, 65, dtype=torch.long))
