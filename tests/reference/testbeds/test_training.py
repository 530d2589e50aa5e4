import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reference.testbeds import char_lm
from reference.testbeds.digits import digits
from reference.testbeds.nets import mlp
from reference.testbeds.training import array_batches, evaluate, text_batches, train, warmup_cosine


def digit_batches(seed=0, batch=64):
    split = digits(0)
    return array_batches(split.train_x, split.train_y, batch, seed, (split.val_x, split.val_y))


def run_mlp(steps=20, rate=1e-2, schedule=None, seed=0, **options):
    model = mlp(0)
    return train(model, digit_batches(seed), torch.optim.SGD(model.parameters(), lr=rate), schedule, steps, **options)


def facts(history):
    return dataclasses.asdict(dataclasses.replace(history, seconds=0.0))


def test_s_learns_characters(doc):
    model = char_lm.make("S", 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    history = train(model, text_batches(doc, 16, 64, 0), optimizer, warmup_cosine(150), 150, evaluate_every=50)
    assert not history.failed
    assert [step for step, _ in history.curve] == [50, 100, 150]
    assert history.val_loss == history.curve[-1][1] < 2.75
    assert len(history.train_loss) == 150
    assert history.data_digest == doc.digest


TWICE = """
import json, torch
from reference.testbeds import char_lm, text, training
torch.set_num_threads(1)
model = char_lm.make("S", 5)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
batches = training.text_batches(text.corpus("DOC", 300_000), 8, 64, 5)
history = training.train(model, batches, optimizer, training.warmup_cosine(12), 12, clip=1.0, evaluate_every=6)
print(json.dumps([history.train_loss, history.curve, history.val_loss, history.data_digest]))
"""


def test_equal_seeds_give_bit_equal_metrics_across_processes():
    outputs = []
    for hash_seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(p for p in sys.path if p) or "."}
        command = [sys.executable, "-c", TWICE]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        outputs.append(json.loads(done.stdout))
    assert len(outputs[0][0]) == 12
    assert outputs[0] == outputs[1]


def test_equal_seeds_give_bit_equal_metrics_in_one_process():
    first = run_mlp(evaluate_every=5)
    torch.rand(7, generator=torch.Generator().manual_seed(0))
    assert facts(first) == facts(run_mlp(evaluate_every=5))
    assert first.train_loss != run_mlp(seed=1).train_loss


def test_one_step_is_the_textbook_step():
    batches, model, twin = digit_batches(), mlp(0), mlp(0)
    history = train(model, batches, torch.optim.SGD(model.parameters(), lr=0.5), lambda step: 0.2, 1)
    loss = twin.loss(*next(iter(batches)))
    loss.backward()
    assert history.train_loss == [loss.item()]
    for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, expected - 0.1 * expected.grad)


def test_the_schedule_scales_each_group_from_its_own_rate_and_survives_a_second_call():
    model, seen = mlp(0), []
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": others, "lr": 0.4}])
    for _ in range(2):
        train(
            model,
            digit_batches(),
            optimizer,
            lambda step: 1 / (step + 1),
            2,
            after_step=lambda step: seen.append([group["lr"] for group in optimizer.param_groups]),
        )
    assert seen == [[0.1, 0.4], [0.05, 0.2]] * 2


def test_without_a_schedule_the_rates_are_left_alone():
    model = mlp(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    train(model, digit_batches(), optimizer, None, 3)
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_hooks_see_every_step_in_order_and_raw_gradients():
    events, norms = [], []

    def on_gradients(step, gradients):
        events.append(("gradients", step))
        norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients.values())))
        assert set(gradients) == {name for name, _ in mlp(0).named_parameters()}

    run_mlp(
        steps=2,
        clip=1e-6,
        on_gradients=on_gradients,
        before_step=lambda step: events.append(("before", step)),
        after_step=lambda step: events.append(("after", step)),
    )
    assert events == [(kind, step) for step in range(2) for kind in ("before", "gradients", "after")]
    assert min(norms) > 1e-3


def test_clipping_bounds_the_step():
    model, before = mlp(0), [p.detach().clone() for p in mlp(0).parameters()]
    train(model, digit_batches(), torch.optim.SGD(model.parameters(), lr=1.0), None, 1, clip=0.01)
    moved = math.sqrt(sum((p - b).square().sum().item() for p, b in zip(model.parameters(), before, strict=True)))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_frozen_parameters_stay():
    model = mlp(0)
    model.layers[1].weight.requires_grad_(False)
    seen = []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    train(model, digit_batches(), optimizer, None, 1, clip=1.0, on_gradients=lambda step, g: seen.append(set(g)))
    assert torch.equal(model.layers[1].weight, mlp(0).layers[1].weight)
    assert "layers.1.weight" not in seen[0]


def test_divergence_stops_the_run_early():
    history = run_mlp(steps=200, rate=1e30)
    assert history.failed
    assert history.val_loss == math.inf
    assert len(history.train_loss) < 10
    assert not math.isfinite(history.train_loss[-1])


def test_a_loss_above_the_limit_stops_the_run():
    history = run_mlp(steps=5, loss_limit=1.0)
    assert history.failed
    assert len(history.train_loss) == 1
    assert history.train_loss[0] > 1.0
    assert history.curve == []


def test_a_validation_loss_that_is_not_finite_is_a_failure():
    split, model = digits(0), mlp(0)
    batches = array_batches(split.train_x, split.train_y, 64, 0, (split.val_x * math.nan, split.val_y))
    history = train(model, batches, torch.optim.SGD(model.parameters(), lr=0.01), None, 4, evaluate_every=2)
    assert history.failed
    assert history.val_loss == math.inf
    assert len(history.train_loss) == 2


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        run_mlp(steps=0)


def test_evaluation_weighs_ragged_batches_by_size_and_restores_the_mode():
    split, model = digits(0), mlp(0)
    batches = array_batches(split.train_x, split.train_y, 64, 0, (split.val_x, split.val_y), validation_batch=100)
    assert [len(y) for _, y in batches.validation] == [100, 100, 100, 59]
    assert evaluate(model, batches.validation) == pytest.approx(model.loss(split.val_x, split.val_y).item(), rel=1e-5)
    assert model.training
    model.eval()
    evaluate(model, batches.validation)
    assert not model.training


@given(steps=st.integers(1, 500), warmup=st.floats(0, 1), floor=st.floats(0, 1))
def test_schedule_rises_then_falls_to_the_floor(steps, warmup, floor):
    schedule = warmup_cosine(steps, warmup, floor)
    values = [schedule(step) for step in range(steps)]
    rising = round(warmup * steps)
    assert all(0 < value <= 1 for value in values[:rising])
    assert values[:rising] == sorted(values[:rising])
    assert values[rising:] == sorted(values[rising:], reverse=True)
    if rising < steps:
        assert values[rising] == 1
    if rising < steps - 1:
        assert values[-1] == pytest.approx(floor)


def test_schedule_values():
    schedule = warmup_cosine(101, warmup=0.1, floor=0.1)
    assert [schedule(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert schedule(55) == pytest.approx(0.55)
    assert schedule(100) == pytest.approx(0.1)


def test_text_batches_are_windows_of_the_training_text(doc):
    batches = text_batches(doc, 4, 64, 0)
    (windows,) = next(iter(batches))
    assert windows.shape == (4, 65)
    assert windows.dtype == torch.int64
    train_bytes = bytes(doc.train.tolist())
    assert all(bytes(window.tolist()) in train_bytes for window in windows)


def test_text_validation_is_fixed_spread_out_and_apart_from_training(doc):
    one, other = text_batches(doc, 4, 64, 0), text_batches(doc, 32, 64, 9)
    windows = torch.cat([part for (part,) in one.validation])
    assert torch.equal(windows, torch.cat([part for (part,) in other.validation]))
    assert windows.shape == (256, 65)
    held_out, seen = bytes(doc.validation.tolist()), bytes(doc.train.tolist())
    places = [held_out.index(bytes(window.tolist())) for window in windows]
    assert max(places) - min(places) > 0.9 * len(held_out)
    assert sum(bytes(window.tolist()) in seen for window in windows) <= 2


def test_all_windows_that_fit_are_taken_when_more_are_asked_for(doc):
    windows = torch.cat([part for (part,) in text_batches(doc, 4, 64, 0, validation_windows=10**9).validation])
    count = len(doc.validation) // 65
    assert torch.equal(windows.flatten(), doc.validation[: count * 65].long())


def test_streams_start_anew_and_depend_on_the_seed(doc):
    batches = text_batches(doc, 4, 64, 0)
    first, again = iter(batches), iter(batches)
    draws = [next(first)[0] for _ in range(3)]
    assert all(torch.equal(draw, next(again)[0]) for draw in draws)
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], next(iter(text_batches(doc, 4, 64, 1)))[0])


def test_windows_longer_than_the_text_are_refused(doc):
    with pytest.raises(ValueError, match="does not fit"):
        text_batches(doc, 4, len(doc.validation), 0)


def test_an_epoch_visits_every_row_once_and_the_next_in_another_order():
    x = torch.arange(12.0)
    batches = iter(array_batches(x, x.long(), 5, 0, (x[:2], x[:2].long())))
    epochs = [torch.cat([next(batches)[0] for _ in range(2)]) for _ in range(2)]
    assert all(len(epoch.unique()) == 10 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_labels_stay_with_their_rows():
    x = torch.arange(12.0)
    batches = iter(array_batches(x, 2 * x.long(), 5, 0, (x, x.long())))
    for _ in range(4):
        rows, labels = next(batches)
        assert torch.equal(labels, 2 * rows.long())


def test_the_digest_of_arrays_follows_their_content():
    x = torch.arange(12.0)
    digest = array_batches(x, x.long(), 5, 0, (x, x.long())).digest
    assert digest == array_batches(x.clone(), x.long(), 3, 1, (x, x.long())).digest
    assert digest != array_batches(x + 1, x.long(), 5, 0, (x, x.long())).digest
    assert digest != array_batches(x, x.long(), 5, 0, (x + 1, x.long())).digest


def test_a_batch_larger_than_the_data_is_refused():
    x = torch.arange(4.0)
    with pytest.raises(ValueError, match=r"1\.\.4"):
        array_batches(x, x, 5, 0, (x, x))


def test_any_module_with_a_loss_can_be_trained():
    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.zeros(()))

        def loss(self, x, y):
            return (self.slope * x - y).square().mean()

    x = torch.linspace(-1, 1, 32)
    model = Line()
    batches = array_batches(x, 3 * x, 16, 0, (x, 3 * x))
    history = train(model, batches, torch.optim.SGD(model.parameters(), lr=0.5), None, 60)
    assert model.slope.item() == pytest.approx(3, abs=1e-3)
    assert history.val_loss < 1e-5
