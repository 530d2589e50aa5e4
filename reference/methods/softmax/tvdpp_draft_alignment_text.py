"""Signatures of the standard library's functions as instructions, the first lines of their docstrings as answers."""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reference.testbeds.text import is_validation

END = "\n"
PROMPT_CHARACTERS = 40
ANSWER_CHARACTERS = 56
PARTS = ("train", "validation", "test")

_DOCUMENTED = re.compile(
    r'^[ \t]*def (\w+\([^()\n]*\)):\n[ \t]+r?"""[ \t]*([A-Z][^"\n\\]{10,})', re.MULTILINE)
_LEFT_OUT = frozenset({"encodings", "pydoc_data", "test", "tests", "idle_test"})
_VALIDATION_SHARE = 0.06


@dataclass(frozen=True)
class Instructions:
    """Prompts such as `join(self, timeout=None):` with an END, and answers, one line with its END; equally many."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    digest: str


@cache
def instructions(part: str) -> Instructions:
    """All pairs of one part, in the order of their hashes.

    A module is on one side only: those whose text `text.corpus` holds out are the test part, so that no model was
    pretrained on them; of the others a few percent are for validation. Prompts keep their last 40 characters, answers
    their first 56, ends included. Raises KeyError for another part.
    """
    if part not in PARTS:
        raise KeyError(f"no part {part!r}; there are {', '.join(PARTS)}")
    pairs = sorted({pair for name, path in _modules() if _part(name) == part for pair in _pairs(path)},
                   key=lambda pair: hashlib.sha256("\0".join(pair).encode()).hexdigest())
    digest = hashlib.sha256("\0".join(prompt + answer for prompt, answer in pairs).encode()).hexdigest()
    return Instructions(tuple(prompt for prompt, _ in pairs), tuple(answer for _, answer in pairs), digest)


def _part(module: str) -> str:
    if is_validation(f"module:{module}"):
        return "test"
    place = int(hashlib.sha256(f"instructions {module}".encode()).hexdigest()[:8], 16) / 2**32
    return "validation" if place < _VALIDATION_SHARE else "train"


def _modules() -> list[tuple[str, Path]]:
    root, found = Path(sysconfig.get_path("stdlib")), []
    for top in sorted(sys.stdlib_module_names - _LEFT_OUT):
        single, folder = root / f"{top}.py", root / top
        for path in [single] if single.is_file() else sorted(folder.rglob("*.py")) if folder.is_dir() else []:
            inner = path.relative_to(root).with_suffix("").parts
            if not _LEFT_OUT.intersection(inner):
                found.append((".".join(inner), path))
    return found


def _pairs(path: Path) -> list[tuple[str, str]]:
    source = path.read_text(encoding="utf-8", errors="replace")
    return [
        (f"{signature}:{END}"[-PROMPT_CHARACTERS:], answer.strip()[: ANSWER_CHARACTERS - 1] + END)
        for signature, answer in _DOCUMENTED.findall(source) if signature.isascii() and answer.isascii()
    ]
