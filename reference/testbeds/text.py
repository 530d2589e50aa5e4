"""Character corpora that every Python carries along: DOC is English about Python, CODE is Python.

Both depend on the interpreter's version, so `Corpus.digest` belongs into every record that used one.
"""

import ast
import gc
import hashlib
import importlib
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

VOCABULARY = 128
UNKNOWN = "?"

_SEPARATOR = "\n\n"
_VALIDATION_SHARE = 0.05
_MIN_REPEATED = 60  # characters; shorter paragraphs ("Return nothing.") may be written twice by chance
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__"})
# encodings holds tables made by a program, one like the other; the topics of pydoc_data would bring DOC into CODE.
_LEFT_OUT = frozenset({"encodings", "pydoc_data", "test"})


@dataclass(frozen=True)
class Document:
    """One help topic or one module: the unit of the split, never divided between training and validation."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Characters as codes 0..127 (uint8); treat the tensors as read-only, all callers share them.

    `train` [N] and `validation` [M] come from disjoint documents, and no paragraph of 60 characters or more occurs
    twice in the corpus. `digest` is the SHA-256 of both parts.
    """

    name: str
    train: Tensor
    validation: Tensor
    train_names: tuple[str, ...]
    validation_names: tuple[str, ...]
    digest: str


@cache
def corpus(name: str, byte_cap: int = 2_000_000) -> Corpus:
    """The corpus DOC (help topics and docstrings) or CODE (stdlib sources), about `byte_cap` bytes in all at most.

    Documents are taken in the order of their names' SHA-256 until the cap is reached, so a smaller cap gives a prefix
    of a larger one, and a document's side of the 95/5 split follows from its name alone: DOC's docstrings of a module
    are on the same side as CODE's source of it. Cached per process; the first DOC takes one or two seconds, so a suite
    with many short runs had better prepare it once.

    Raises KeyError for another name, ValueError when the cap leaves a side empty, LookupError when this Python was
    installed without its sources or help topics.
    """
    if name not in _SOURCES:
        raise KeyError(f"no corpus {name!r}; there are {', '.join(_SOURCES)}")
    sides: dict[bool, list[Document]] = {True: [], False: []}
    for document in _capped(_without_repeats(_SOURCES[name]()), byte_cap):
        sides[is_validation(document.name)].append(document)
    if not sides[True] or not sides[False]:
        raise ValueError(f"corpus {name} has no training or no validation text within byte_cap={byte_cap}; raise it")
    train, validation = (_SEPARATOR.join(d.text for d in sides[side]).encode("ascii") for side in (False, True))
    return Corpus(
        name=name,
        train=encode_bytes(train),
        validation=encode_bytes(validation),
        train_names=tuple(d.name for d in sides[False]),
        validation_names=tuple(d.name for d in sides[True]),
        digest=hashlib.sha256(hashlib.sha256(train).digest() + hashlib.sha256(validation).digest()).hexdigest(),
    )


def is_validation(document_name: str) -> bool:
    """Whether a document is held out: 5 % of all names, chosen by hash.

    The number in the hashed text is the first that holds out about 5 % of the characters, too, of topics, docstrings
    and sources each (CPython 3.11): documents differ a thousandfold in length.
    """
    return int(_hash(f"split 611: {document_name}")[:8], 16) < _VALIDATION_SHARE * 2**32


def encode(text: str) -> Tensor:
    """Codes 0..127 of the characters, uint8 [len(text)]; whatever is not ASCII becomes '?'."""
    return encode_bytes(_ascii(text).encode("ascii"))


def encode_bytes(ascii_text: bytes) -> Tensor:
    """The bytes as a tensor of their own memory, uint8 [len]."""
    return torch.from_numpy(np.array(bytearray(ascii_text), dtype=np.uint8))


def decode(codes: Tensor) -> str:
    """The text of codes 0..127, the inverse of `encode` on ASCII."""
    return bytes(codes.tolist()).decode("ascii")


def _topics_and_docstrings() -> Iterator[Document]:
    topics = _help_topics()
    names = {f"topic:{topic}": (lambda text=text: text) for topic, text in topics.items()}
    root = _stdlib()
    names |= {f"module:{name}": (lambda path=path: _docstrings(path)) for name, path in _modules(root).items()}
    return _in_hash_order(names)


def _sources() -> Iterator[Document]:
    modules = _modules(_stdlib()).items()
    return _in_hash_order({f"module:{name}": (lambda path=path: _read(path)) for name, path in modules})


_SOURCES: dict[str, Callable[[], Iterator[Document]]] = {"DOC": _topics_and_docstrings, "CODE": _sources}


def _in_hash_order(texts: dict[str, Callable[[], str]]) -> Iterator[Document]:
    for name in sorted(texts, key=_hash):
        text = _ascii(texts[name]()).strip()
        if text:
            yield Document(name, text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _without_repeats(documents: Iterator[Document]) -> Iterator[Document]:
    """Each long paragraph only where it comes first: topics contain one another, docstrings are copied."""
    seen: set[str] = set()
    for document in documents:
        kept = []
        for paragraph in document.text.split(_SEPARATOR):
            words = " ".join(paragraph.split())
            if len(words) >= _MIN_REPEATED:
                if words in seen:
                    continue
                seen.add(words)
            kept.append(paragraph)
        text = _SEPARATOR.join(kept).strip()
        if text:
            yield Document(document.name, text)


def _capped(documents: Iterator[Document], byte_cap: int) -> Iterator[Document]:
    """Documents until the cap; the one that would pass it is cut there."""
    left = byte_cap
    for document in documents:
        if left <= 0:
            return
        yield Document(document.name, document.text[:left])
        left -= len(document.text) + len(_SEPARATOR)


def _help_topics() -> dict[str, str]:
    try:
        module = importlib.import_module("pydoc_data.topics")
    except ModuleNotFoundError as error:
        raise LookupError("this Python lacks pydoc_data.topics, from which DOC is made; install all of it") from error
    return dict(module.topics)


def _stdlib() -> Path:
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "ast.py").is_file():
        raise LookupError(f"the standard library's sources are not in {root}, so DOC and CODE cannot be made here")
    return root


def _modules(root: Path) -> dict[str, Path]:
    """Dotted name -> source, of all stdlib modules but tests; files that others put there are not taken."""
    found = {}
    for top in sorted(sys.stdlib_module_names - _LEFT_OUT):
        single, folder = root / f"{top}.py", root / top
        paths = [single] if single.is_file() else sorted(folder.rglob("*.py")) if folder.is_dir() else []
        for path in paths:
            inner = PurePosixPath(path.relative_to(root).as_posix()).with_suffix("").parts
            if not _TEST_FOLDERS.intersection(inner):
                found[".".join(inner)] = path
    return found


def _docstrings(path: Path) -> str:
    found: list[str] = []
    with warnings.catch_warnings(), _no_garbage_collection():
        warnings.simplefilter("ignore")  # invalid escapes in the stdlib's own sources are not the user's business
        _collect_docstrings(ast.parse(path.read_bytes()), found)
    return _SEPARATOR.join(found)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees are many objects without cycles: looking for cycles among them doubles the time of parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _collect_docstrings(node: ast.AST, found: list[str]) -> None:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            found.append(docstring)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            _collect_docstrings(child, found)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")


def _ascii(text: str) -> str:
    return text.encode("ascii", errors="replace").decode("ascii")
