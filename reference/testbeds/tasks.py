"""Short tasks with one right answer, in char_lm's characters: `ADD2:37+48=` is answered by `85` and an end."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reference.testbeds.seeding import generator
from reference.testbeds.text import Corpus, encode
from reference.testbeds.training import Batches, array_batches, array_digest

END = "\n"
END_CODE = ord(END)
# Shares of the inputs; each input is on one side only, wherever and however often it is drawn.
PARTS = {"train": 0.7, "label": 0.1, "validation": 0.1, "test": 0.1}

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MOST_DRAWS = 10_000


@dataclass(frozen=True)
class Task:
    """`draw` makes one input from a source of randomness, `solve` gives its one right answer; neither holds an END."""

    name: str
    draw: Callable[[random.Random], str]
    solve: Callable[[str], str]

    def prompt(self, given: str) -> str:
        """What the model reads: `NAME:input=`."""
        return f"{self.name}:{given}="

    def verify(self, given: str, output: str) -> bool:
        """Whether what the model wrote, up to its first END, is the answer. An output without END is not finished."""
        answer, end, _ = output.partition(END)
        return bool(end) and answer == self.solve(given)


@dataclass(frozen=True)
class Examples:
    """Inputs with their tasks' names and answers; all three equally long."""

    tasks: tuple[str, ...]
    given: tuple[str, ...]
    answers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.given)

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt per example."""
        return tuple(TASKS[task].prompt(given) for task, given in zip(self.tasks, self.given, strict=True))

    def lines(self) -> tuple[str, ...]:
        """Prompt, answer and END, as a model is trained on them."""
        return tuple(f"{prompt}{answer}{END}" for prompt, answer in zip(self.prompts, self.answers, strict=True))

    def exact_match(self, outputs: Sequence[str]) -> float:
        """Share of outputs that verify; ValueError unless there is one for each example."""
        rows = zip(self.tasks, self.given, outputs, strict=True)
        return sum(TASKS[task].verify(given, output) for task, given, output in rows) / len(self)


def examples(task: str, count: int, seed: int, part: str = "train") -> Examples:
    """`count` independent draws of a task's inputs from one part; small tasks repeat themselves.

    Raises KeyError for an unknown task or part, ValueError where a part of so small a task holds no input.
    """
    chosen, source = TASKS[_known(task, TASKS)], random.Random(generator("tasks", task, part, seed).initial_seed())
    given = tuple(_draw(chosen, source, _known(part, PARTS)) for _ in range(count))
    return Examples((task,) * count, given, tuple(chosen.solve(item) for item in given))


def mixture(tasks: Sequence[str], count: int, seed: int, part: str = "train") -> Examples:
    """`count` examples of each task, in turn: the first of every task, then the second of every task, and so on."""
    each = [examples(task, count, seed, part) for task in tasks]
    order = [(drawn, index) for index in range(count) for drawn in each]
    return Examples(*(tuple(getattr(drawn, name)[index] for drawn, index in order)
                      for name in ("tasks", "given", "answers")))


def part_of(task: str, given: str) -> str:
    """Which part an input belongs to, by the hash of task and input."""
    place = int(hashlib.sha256(f"{task}:{given}".encode()).hexdigest()[:8], 16) / 2**32
    for part, share in PARTS.items():
        place -= share
        if place < 0:
            return part
    return part


def rows(drawn: Examples, width: int) -> tuple[Tensor, Tensor]:
    """`marked_rows` of the examples."""
    return marked_rows(drawn.prompts, [answer + END for answer in drawn.answers], width)


def marked_rows(prompts: Sequence[str], answers: Sequence[str], width: int) -> tuple[Tensor, Tensor]:
    """Prompts and answers as tokens int64 [n, width], filled up with END, and a mask bool [n, width] of the answers.

    Answers carry their own END. Raises ValueError where a line is longer than `width`.
    """
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    if longest > width:
        raise ValueError(f"a line of {longest} characters does not fit into {width}")
    tokens = torch.full((len(prompts), width), END_CODE)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens[row, :end] = encode(prompt + answer).long()
        mask[row, len(prompt) : end] = True
    return tokens, mask


def task_batches(
    drawn: Examples, batch: int, seed: int, width: int, validation: Examples, validation_batch: int = 512
) -> Batches:
    """Batches (tokens, mask) of `rows`, for `OnAnswers`."""
    return array_batches(*rows(drawn, width), batch, seed, rows(validation, width), validation_batch)


def dosed(corpus: Corpus, tasks: Sequence[str], share: float, seed: int, repeats: int = 1) -> Corpus:
    """The corpus with lines of the tasks behind its training text, so that they make up `share` of it.

    Random windows thus see text and lines in these proportions. With `repeats` above one the lines are fewer and
    occur that often: a dose that shows the form of a task and little of its content.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    wanted = round(len(corpus.train) * share / (1 - share))
    shortest = min(len(line) for line in mixture(tasks, 1, seed).lines())
    text = "".join(mixture(tasks, wanted // (shortest * len(tasks) * repeats) + 1, seed).lines())
    text = (text[: wanted // repeats].rpartition(END)[0] + END) * repeats
    train = torch.cat([corpus.train, encode(END + text)])
    return replace(corpus, name=f"{corpus.name}+{'+'.join(tasks)}", train=train,
                   digest=array_digest(train, corpus.validation))


class OnAnswers(nn.Module):
    """A language model trained on answers alone: hand it to `training.train` in the model's place."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def loss(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Mean cross entropy in nats over the masked characters, a scalar; both [batch, width]."""
        counted = mask[:, 1:]
        return cross_entropy(self.model(tokens[:, :-1])[counted], tokens[:, 1:][counted])


def _draw(task: Task, source: random.Random, part: str) -> str:
    for _ in range(_MOST_DRAWS):
        given = task.draw(source)
        if part_of(task.name, given) == part:
            return given
    raise ValueError(f"task {task.name} has no input in part {part!r}")


def _known(name: str, table: Mapping[str, object]) -> str:
    if name not in table:
        raise KeyError(f"no {name!r}; there are {', '.join(table)}")
    return name


def _number(source: random.Random, digits: int) -> int:
    return source.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _letters(source: random.Random, shortest: int = 3, longest: int = 8, alphabet: str = ascii_lowercase) -> str:
    return "".join(source.choices(alphabet, k=source.randint(shortest, longest)))


def _sum(digits: int) -> Task:
    return Task(f"ADD{digits}", lambda source: f"{_number(source, digits)}+{_number(source, digits)}",
                lambda given: str(sum(map(int, given.split("+")))))


def _difference(digits: int) -> Task:
    def solve(given: str) -> str:
        left, right = given.split("-")
        return str(int(left) - int(right))

    return Task(f"SUB{digits}", lambda source: f"{_number(source, digits)}-{_number(source, digits)}", solve)


def _count(given: str) -> str:
    text, letter = given.split(",")
    return str(text.count(letter))


def _date(source: random.Random) -> str:
    return f"{source.randint(1, 28)} {source.choice(_MONTHS)} {source.randint(1900, 2099)}"


def _iso_date(given: str) -> str:
    day, month, year = given.split(" ")
    return f"{year}-{_MONTHS.index(month) + 1:02d}-{int(day):02d}"


def _numbers(source: random.Random) -> str:
    return ",".join(str(source.randrange(100)) for _ in range(source.randint(2, 5)))


_ROTATED = str.maketrans(ascii_lowercase, ascii_lowercase[1:] + ascii_lowercase[0])

TASKS = {task.name: task for task in (
    *(_sum(digits) for digits in (1, 2, 3)),
    *(_difference(digits) for digits in (1, 2, 3)),
    Task("MOD7", lambda source: str(source.randrange(1000)), lambda given: str(int(given) % 7)),
    Task("COPY", _letters, lambda given: given),
    Task("REV", _letters, lambda given: given[::-1]),
    Task("REV4", lambda source: _letters(source, 4, 4), lambda given: given[::-1]),
    Task("SORT", _letters, lambda given: "".join(sorted(given))),
    Task("UPPER", _letters, str.upper),
    Task("ROT1", _letters, lambda given: given.translate(_ROTATED)),
    Task("NOVOWEL", _letters, lambda given: "".join(letter for letter in given if letter not in "aeiou")),
    Task("COUNT", lambda source: f"{_letters(source, 3, 8, 'abc')},{source.choice('abc')}", _count),
    Task("MAX", _numbers, lambda given: str(max(map(int, given.split(","))))),
    Task("DATE", _date, _iso_date),
)}
