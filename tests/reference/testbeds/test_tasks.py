import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.testbeds import char_lm, tasks, training
from reference.testbeds.text import decode

SOLVED = {
    "ADD2": ("37+48", "85"),
    "SUB2": ("37-48", "-11"),
    "MOD7": ("345", "2"),
    "COPY": ("abcab", "abcab"),
    "REV": ("abcd", "dcba"),
    "SORT": ("hello", "ehllo"),
    "UPPER": ("abc", "ABC"),
    "ROT1": ("xyz", "yza"),
    "NOVOWEL": ("banana", "bnn"),
    "COUNT": ("abcaa,a", "3"),
    "MAX": ("3,17,5", "17"),
    "DATE": ("7 Mar 2019", "2019-03-07"),
}


@pytest.mark.parametrize("name", SOLVED)
def test_answers_by_hand(name):
    asked, answer = SOLVED[name]
    assert tasks.TASKS[name].solve(asked) == answer
    assert tasks.TASKS[name].verify(asked, f"{answer}\nwhatever")
    assert not tasks.TASKS[name].verify(asked, answer)
    assert not tasks.TASKS[name].verify(asked, f"{answer}0\n")


@given(st.sampled_from(sorted(tasks.TASKS)), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_every_input_has_one_printable_line(name, seed):
    task = tasks.TASKS[name]
    drawn = task.draw(random.Random(seed))
    line = task.prompt(drawn) + task.solve(drawn)
    assert line.isascii()
    assert tasks.END not in line
    assert task.prompt(drawn).endswith("=")
    assert "=" not in drawn


def test_parts_share_no_input_and_have_their_shares():
    by_part = {part: set(tasks.examples("ADD2", 800, 0, part).given) for part in tasks.PARTS}
    seen = set().union(*by_part.values())
    assert sum(map(len, by_part.values())) == len(seen)
    counted = [tasks.part_of("SORT", str(number)) for number in range(5000)]
    for part, share in tasks.PARTS.items():
        assert counted.count(part) / 5000 == pytest.approx(share, abs=0.02)


def test_examples_depend_on_their_arguments_alone():
    assert tasks.examples("REV", 20, 3) == tasks.examples("REV", 20, 3)
    assert tasks.examples("REV", 20, 3) != tasks.examples("REV", 20, 4)
    assert tasks.examples("REV", 20, 3).given == tasks.examples("REV", 40, 3).given[:20]


def test_mixture_takes_tasks_in_turn():
    drawn = tasks.mixture(["COPY", "MAX"], 3, 0)
    assert drawn.tasks == ("COPY", "MAX") * 3
    assert drawn.exact_match([f"{answer}\n" for answer in drawn.answers]) == 1.0
    assert drawn.exact_match(["nonsense\n"] * 3 + [f"{answer}\n" for answer in drawn.answers[3:]]) == 0.5


def test_rows_mark_answers_and_their_end():
    drawn = tasks.examples("ADD2", 6, 0)
    tokens, mask = tasks.rows(drawn, 16)
    for row in range(6):
        assert decode(tokens[row][mask[row]]) == drawn.answers[row] + tasks.END
        assert decode(tokens[row]).startswith(drawn.lines()[row])
    with pytest.raises(ValueError, match="does not fit"):
        tasks.rows(drawn, 8)


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="ADD2"):
        tasks.examples("ADDITION", 1, 0)
    with pytest.raises(KeyError, match="validation"):
        tasks.examples("ADD2", 1, 0, "dev")


def test_a_part_without_inputs_is_an_error(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "ONE", tasks.Task("ONE", lambda _: "1", lambda given: given))
    empty = next(part for part in tasks.PARTS if part != tasks.part_of("ONE", "1"))
    with pytest.raises(ValueError, match="no input"):
        tasks.examples("ONE", 1, 0, empty)


def test_dose_has_its_share_and_only_training_inputs(doc):
    dosed = tasks.dosed(doc, ["ADD2", "REV"], 0.1, 0, repeats=3)
    added = len(dosed.train) - len(doc.train)
    assert added / len(dosed.train) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dosed.train[: len(doc.train)], doc.train)
    lines = decode(dosed.train[len(doc.train):]).strip().split("\n")
    assert len(lines) == pytest.approx(3 * len(set(lines)), rel=0.1)
    for line in lines[:200]:
        head, answer = line.rsplit("=", 1)
        name, asked = head.split(":")
        assert tasks.TASKS[name].solve(asked) == answer
        assert tasks.part_of(name, asked) == "train"
    assert dosed.digest != doc.digest
    with pytest.raises(ValueError, match="share"):
        tasks.dosed(doc, ["ADD2"], 0.0, 0)


def test_only_answers_are_trained_on():
    model = char_lm.make("S", 0, context=23)
    tokens, mask = tasks.rows(tasks.examples("COPY", 4, 0), 24)[0], torch.zeros(4, 24, dtype=torch.bool)
    mask[:, 9] = True
    other = tokens.clone()
    other[:, 10:] = 65  # behind the only character that counts
    loss = tasks.OnAnswers(model).loss
    torch.testing.assert_close(loss(tokens, mask), loss(other, mask))
    other[:, 9] = 66
    assert not torch.allclose(loss(tokens, mask), loss(other, mask))


def test_a_model_learns_a_task():
    drawn = tasks.examples("UPPER", 64, 0)
    batches = tasks.task_batches(drawn, 32, 0, 24, tasks.examples("UPPER", 32, 0, "validation"))
    model = char_lm.make("S", 0, context=23, width=32)
    before = training.evaluate(tasks.OnAnswers(model), batches.validation)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = training.train(tasks.OnAnswers(model), batches, optimizer, None, 30)
    assert history.val_loss < 0.9 * before
