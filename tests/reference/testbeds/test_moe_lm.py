import math

import pytest
import torch
from torch.nn.functional import gelu

from reference.testbeds import char_lm, moe_lm, seeding, training
from reference.testbeds.moe_lm import Mixture, Routes

SMALL = Mixture(experts=4, top_k=2, hidden=8)


@pytest.fixture
def windows(doc):
    return doc.train[: 8 * 17].long().view(8, 17)


def small(seed=0, mixture=SMALL):
    return moe_lm.make(seed, mixture, width=16, context=16)


def layer_and_tokens(mixture=SMALL):
    layer = small(mixture=mixture).layers()[0]
    return layer, torch.randn(20, 16, generator=seeding.generator("tokens"))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_layer_is_the_gated_sum_of_the_chosen_experts(k):
    layer, tokens = layer_and_tokens(Mixture(experts=4, top_k=k, hidden=8))
    routes = layer.gate(tokens)
    expected = torch.zeros_like(tokens)
    for n, token in enumerate(tokens):
        for expert, gate in zip(routes.chosen[n], routes.gates[n], strict=True):
            expected[n] += gate * (gelu(token @ layer.up.weight[expert]) @ layer.down.weight[expert])
    torch.testing.assert_close(layer(tokens.view(4, 5, 16)).flatten(0, 1), expected)


def test_all_experts_chosen_is_the_dense_softmax_mixture():
    layer, tokens = layer_and_tokens(Mixture(experts=4, top_k=4, hidden=8))
    weights = layer.gate(tokens).logits.softmax(-1)
    torch.testing.assert_close(layer(tokens), (weights[..., None] * layer.every_expert(tokens)).sum(1))


def test_gates_of_two_sum_to_one_and_a_single_gate_is_a_probability():
    logits = torch.randn(50, 6, generator=seeding.generator("logits"))
    chosen, gates = moe_lm.top_k_gates(logits, 2)
    torch.testing.assert_close(gates.sum(-1), torch.ones(50))
    assert (gates[:, 0] >= gates[:, 1]).all()
    assert torch.equal(chosen[:, 0], logits.argmax(-1))
    _, single = moe_lm.top_k_gates(logits, 1)
    torch.testing.assert_close(single[:, 0], logits.softmax(-1).amax(-1))


def test_balance_is_one_when_even_and_the_number_of_experts_when_all_go_to_one():
    even = Routes(torch.zeros(4, 4), torch.arange(4)[:, None], torch.ones(4, 1))
    assert moe_lm.balance_loss(even).item() == pytest.approx(1.0)
    certain = torch.full((4, 4), -50.0)
    certain[:, 2] = 50.0
    collapsed = Routes(certain, torch.full((4, 1), 2), torch.ones(4, 1))
    assert moe_lm.balance_loss(collapsed).item() == pytest.approx(4.0)


def test_the_balance_loss_belongs_to_training_alone(windows):
    model = small()
    model.train()
    with_balance = model.loss(windows).item()
    balance = sum(layer.balance.item() for layer in model.layers())
    model.eval()
    assert with_balance == pytest.approx(model.loss(windows).item() + SMALL.balance * balance, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2])
def test_every_parameter_learns_from_the_cross_entropy_alone(k, windows):
    model = small(mixture=Mixture(experts=4, top_k=k, hidden=8, balance=0.0))
    model.train()
    model.loss(windows).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_gradient_agrees_with_finite_differences(windows):
    model = small().double()
    model.train()
    model.loss(windows).backward()
    for name in ("blocks.0.mlp.gate.weight", "blocks.1.mlp.up.weight", "blocks.1.mlp.down.weight"):
        parameter = model.get_parameter(name)
        place = tuple(int(i) for i in (parameter.grad.abs() == parameter.grad.abs().max()).nonzero()[0])
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter[place] += sign * 1e-6
                losses.append(model.loss(windows).item())
                parameter[place] -= sign * 1e-6
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(parameter.grad[place].item(), rel=1e-4), name


def test_initial_values_depend_on_the_seed_and_differ_between_experts():
    first, again, other = small(1), small(1), small(2)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    up = first.layers()[0].up.weight
    assert not torch.equal(up, other.layers()[0].up.weight)
    assert not torch.equal(up[0], up[1])
    assert up.std().item() == pytest.approx(1 / 4, rel=0.1)


def test_the_dense_model_costs_as_many_multiplications_and_shares_the_rest():
    mixture = Mixture()
    hidden = moe_lm.dense_hidden(mixture)
    assert hidden == 264
    routed, dense = moe_lm.make(0, mixture), moe_lm.make_dense(0, mixture)
    assert 2 * 128 * hidden == mixture.top_k * 2 * 128 * mixture.hidden + 128 * mixture.experts
    assert dense.blocks[0].mlp.up.weight.shape == (264, 128)
    assert torch.equal(routed.blocks[1].attention.key.weight, dense.blocks[1].attention.key.weight)
    assert char_lm.parameter_count(routed) > 3 * char_lm.parameter_count(dense)


def test_an_untrained_model_knows_nothing_and_a_few_steps_teach_it(doc):
    model = small()
    batches = training.text_batches(doc, 8, 16, seed=0, validation_windows=32)
    assert abs(training.evaluate(model, batches.validation) - math.log(128)) < 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = training.train(model, batches, optimizer, None, 30)
    assert first.val_loss < 3.7
    again = small()
    second = training.train(again, batches, torch.optim.AdamW(again.parameters(), lr=1e-2), None, 30)
    assert first.train_loss == second.train_loss


def test_the_held_out_text_is_halved(doc):
    validation, test = moe_lm.validation_and_test(doc)
    assert torch.equal(torch.cat([validation.validation, test.validation]), doc.validation)
    assert abs(len(validation.validation) - len(test.validation)) <= 1


def test_more_calls_than_experts_are_refused():
    with pytest.raises(ValueError, match=r"1\.\.4"):
        Mixture(experts=4, top_k=5)
