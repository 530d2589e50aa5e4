"""DOC as words: help topics and docstrings in lower case, split by document into training, validation and test."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

# DOC's documents with their borders, which `text.corpus` joins
from reference.testbeds.text import _capped, _topics_and_docstrings, _without_repeats, is_validation

UNKNOWN_ID = 0
UNKNOWN_WORD = "<unknown>"

_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[^\sa-z0-9]")
_VALIDATION_SHARE = 0.05
# the first number that gives validation 5 % of the words of topics and of docstrings, too: documents differ in length
_SPLIT = 213
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Words:
    """Word ids (int64) of three sides made of disjoint documents; read-only, since all callers share them.

    `vocabulary[i]` is the word of id i: 0 is the unknown word, the others follow by falling frequency in the training
    side (equal ones in alphabetical order). `counts` [V] are occurrences in the training side; every word but the
    unknown one occurs there. `names[part]` are the documents of a side. `digest` is the SHA-256 of the three sides.
    """

    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]
    counts: Tensor
    names: dict[str, tuple[str, ...]]
    digest: str


@cache
def words(vocabulary: int = 4096, byte_cap: int = 2_000_000) -> Words:
    """DOC's first `byte_cap` bytes as words: letters, numbers and single marks; all but the most frequent are unknown.

    The test side is what `text.corpus("DOC")` holds out (about 5 %); of the rest, another 5 % of the documents, chosen
    by the hash of their names, are the validation side. Cached per process; the first call takes a second or two.

    Raises ValueError when the training side has fewer different words than `vocabulary` - 1, or a side is empty.
    """
    documents: dict[str, list[tuple[str, list[str]]]] = {part: [] for part in _PARTS}
    for document in _capped(_without_repeats(_topics_and_docstrings()), byte_cap):
        documents[part_of(document.name)].append((document.name, tokens_of(document.text)))
    sides = {part: [token for _, tokens in found for token in tokens] for part, found in documents.items()}
    if not all(sides.values()):
        raise ValueError(f"a side has no text within byte_cap={byte_cap}; raise it")
    frequencies = Counter(sides["train"])
    if not 2 <= vocabulary <= len(frequencies) + 1:
        raise ValueError(f"vocabulary must lie in 2..{len(frequencies) + 1} for byte_cap={byte_cap}, not {vocabulary}")
    ranked = sorted(frequencies, key=lambda word: (-frequencies[word], word))[: vocabulary - 1]
    ids = {word: index for index, word in enumerate(ranked, start=1)}
    encoded = {part: encode(tokens, ids) for part, tokens in sides.items()}
    return Words(
        **encoded,
        vocabulary=(UNKNOWN_WORD, *ranked),
        counts=torch.bincount(encoded["train"], minlength=vocabulary),
        names={part: tuple(name for name, _ in found) for part, found in documents.items()},
        digest=hashlib.sha256(b"".join(encoded[part].numpy().tobytes() for part in _PARTS)).hexdigest(),
    )


def part_of(document_name: str) -> str:
    """The side of a document, by its name alone: "train", "validation" or "test"."""
    if is_validation(document_name):
        return "test"
    number = int(hashlib.sha256(f"words {_SPLIT}: {document_name}".encode()).hexdigest()[:8], 16)
    return "validation" if number < _VALIDATION_SHARE * 2**32 else "train"


def tokens_of(text: str) -> list[str]:
    """Lower-case words, numbers and single marks in their order; spaces and line breaks are dropped."""
    return _TOKEN.findall(text.lower())


def encode(tokens: list[str], ids: dict[str, int]) -> Tensor:
    """The ids of the tokens, int64 [len(tokens)]; a token without an id is unknown."""
    return torch.from_numpy(np.array([ids.get(token, UNKNOWN_ID) for token in tokens], dtype=np.int64))
