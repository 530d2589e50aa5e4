"""What ``suite.prepare`` builds, kept below ``.litmus/cache``: built once, checked when read, timed, never measured."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import IO, Any

from harness.declare.seeds import seed_for
from harness.errors import LitmusError
from harness.plan.code import file_hash
from harness.plan.machine import software
from harness.run import stage

_DIGEST_BYTES = 32
# Versions that do not change what a build function computes.
_IRRELEVANT = ("kernel",)


class Cache:
    """The cache of one worker. ``code`` is the hash of the suite's code; ``note`` tells the user what went wrong.

    An artefact depends on the code that builds it: where ``build`` is a module's plain function, on that module and
    what it imports here; otherwise (a lambda, a closure, an object) on the whole suite. ``prepare_ns`` counts all time
    spent here, waiting for another worker's build included. Every call returns a new copy, built or read alike, so that
    no arm sees what another did to it. The cache holds pickles: it is only ever written by this project's own workers
    on this machine.
    """

    def __init__(self, root: Path, code: str, note: Callable[[str], None]) -> None:
        self.folder = root / ".litmus" / "cache"
        self.code, self.note = code, note
        self.root = root
        self.prepare_ns = 0
        self._inside = False  # a build may ask for another artefact, and no time is counted twice

    def get(self, suite: str, name: str, config: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Any]) -> Any:
        """The artefact of ``build(config)``. Raises LitmusError where ``config`` is not plain data.

        ``build`` runs with generators seeded from name and config; the caller's are untouched afterwards.
        """
        begin, outermost = time.perf_counter_ns(), not self._inside
        self._inside = True
        try:
            with stage.preparing():
                return pickle.loads(self._payload(suite, name, config, build))
        finally:
            if outermost:
                self._inside = False
                self.prepare_ns += time.perf_counter_ns() - begin

    def key(self, name: str, config: Mapping[str, Any], code: str) -> str:
        """16 hex digits over name, config, code and library versions."""
        versions = {item: version for item, version in software().items() if item not in _IRRELEVANT}
        try:
            text = json.dumps([name, dict(config), code, versions], sort_keys=True)
        except TypeError as error:
            raise LitmusError(f"the config of artefact '{name}' is not plain data", value=str(error),
                              expected="numbers, words, lists and mappings of them") from error
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _payload(self, suite: str, name: str, config: Mapping[str, Any], build: Callable[..., Any]) -> bytes:
        code = self._code_of(build)
        key = self.key(name, config, code)
        path = self.folder / f"{name}-{key}.pkl"
        try:
            kept = self._read(path)
            if kept is not None:
                return kept
            lock = _locked(path.with_suffix(".lock"))
        except OSError as error:
            self._cannot_keep(name, error)
            return _build(name, config, build)[0]
        with lock:
            kept = self._read(path)  # another worker may have built it while this one waited
            if kept is None:
                kept, seconds = _build(name, config, build)
                about = {"suite": suite, "name": name, "config": dict(config), "code": code,
                         "build_s": seconds, "built_at": time.time()}
                try:
                    _write(path, kept, about)
                except OSError as error:
                    self._cannot_keep(name, error)
            return kept

    def _code_of(self, build: Callable[..., Any]) -> str:
        if not isinstance(build, FunctionType) or build.__closure__ or build.__name__ == "<lambda>":
            return self.code
        path = Path(build.__code__.co_filename)
        return file_hash(self.root, path) if path.is_relative_to(self.root) else self.code

    def _cannot_keep(self, name: str, error: OSError) -> None:
        self.note(f"artefact '{name}' cannot be kept ({error.strerror}: {error.filename}); it is built anew each time")

    def _read(self, path: Path) -> bytes | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        payload = data[_DIGEST_BYTES:]
        if hashlib.sha256(payload).digest() != data[:_DIGEST_BYTES]:
            self.note(f"the cached artefact {path.name} is damaged; building it again")
            return None
        return payload


def _build(name: str, config: Mapping[str, Any], build: Callable[..., Any]) -> tuple[bytes, float]:
    begin = time.perf_counter()
    # Neither code nor versions go into the seed: an edit that changes nothing must not change the numbers.
    with _own_generators(seed_for("prepare", name, json.dumps(dict(config), sort_keys=True))):
        built = build(config)
    return pickle.dumps(built, protocol=pickle.HIGHEST_PROTOCOL), time.perf_counter() - begin


@contextmanager
def _own_generators(seed: int) -> Iterator[None]:
    import numpy as np

    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch:
            torch.set_rng_state(states[2])


def _locked(path: Path) -> IO[str]:
    """The lock file, held until it is closed; waits for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _write(path: Path, payload: bytes, about: Mapping[str, Any]) -> None:
    for target, data in (
        (path, hashlib.sha256(payload).digest() + payload),
        (path.with_suffix(".json"), json.dumps(about, sort_keys=True, indent=1).encode()),
    ):
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
