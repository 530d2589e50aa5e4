"""The dask workers of a cluster: who is there, who is left out and why, and who can take a job."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness.errors import LitmusError
from harness.plan.code import code_hash
from harness.plan.machine import Machine
from harness.run.engine.dask_worker import Member, introduce

_FIRST_S = 10.0
_REFRESH_S = 1.0
# How long a place that was lost may stay away before its cells are given up.
_RETURN_S = 30.0


@dataclass(frozen=True)
class Need:
    """What a job asks of whoever takes it: the device, the kind of machine (None: any), nothing else beside it."""

    device: str
    kind: str | None = None
    alone: bool = False

    def is_met_by(self, member: Member) -> bool:
        """Whether the member could take such a job."""
        if self.kind not in (None, member.machine.key):
            return False
        return self.device in member.devices or (self.device == "cpu" and not self.alone)


class Crew:
    """The members that may take jobs of a run, kept up to date.

    All have the client's suites and the same libraries. ``machine`` is that of the kind with the most devices: what is
    timed is timed on one kind only, since times of two kinds cannot be compared. Raises LitmusError where nobody fits.
    """

    def __init__(self, client: Any, root: Path, suites: Sequence[str]) -> None:
        self._client, self._root, self._suites = client, root, tuple(suites)
        self._code = {name: code_hash(root, root / "suites" / name) for name in suites}
        self._lock = threading.Lock()
        self._looked_s = float("-inf")
        self._alive: frozenset[str] = frozenset()
        self._home: dict[str, Member] = {}
        self._gone_s: dict[Need, float] = {}
        self.members: dict[str, Member] = {}
        self.left_out: dict[str, tuple[str, str]] = {}
        self._settle()

    def _settle(self) -> None:
        """Wait for the first members and choose the kind of machine that the run is of."""
        end_s = time.monotonic() + _FIRST_S
        met: dict[str, Member] = {}
        while not met and time.monotonic() < end_s:
            self._alive = frozenset(self._client.nthreads())
            met = self._meet(self._alive - set(self.left_out))
            if self._alive and self._alive <= set(self.left_out):
                break
            if not met:
                time.sleep(0.2)
        if not met:
            raise self._nobody()
        self._looked_s = time.monotonic()
        kinds = Counter(member.machine.key for member in met.values())
        first = max(met.values(), key=lambda member: (len(member.machine.devices), kinds[member.machine.key],
                                                      member.machine.key))
        self.machine: Machine = first.machine
        mine = [member for member in met.values() if member.machine.key == self.machine.key]
        versions = Counter(tuple(sorted(_numbers_depend_on(member.software).items())) for member in mine)
        usual = dict(versions.most_common(1)[0][0])
        self.software = next(member.software for member in mine if _numbers_depend_on(member.software) == usual)
        self._admit(met)

    def _nobody(self) -> LitmusError:
        address = self._client.scheduler.address
        faults = "; ".join(f"{name}: {fault}" for name, fault in sorted(self.left_out.values()))
        return LitmusError("no worker of the cluster can run this project", where=address,
                           value=faults or "no worker is connected",
                           expected="at least one dask worker with this project and the same libraries",
                           next_step=f"start one with: dask worker {address}, see docs/clusters.md")

    def _meet(self, addresses: Iterable[str]) -> dict[str, Member]:
        """Those at ``addresses`` that have the project's code; the others are left out."""
        wanted = list(addresses)
        if not wanted:
            return {}
        said = self._client.run(introduce, str(self._root), self._suites, workers=wanted, on_error="return")
        met = {}
        for address, member in said.items():
            fault = self._fault(member)
            if fault is None:
                met[address] = member
            elif not isinstance(member, OSError):  # whoever has just left is not left out
                self.left_out[address] = (member.name if isinstance(member, Member) else address, fault)
        return met

    def _fault(self, member: Member | BaseException) -> str | None:
        if isinstance(member, BaseException):
            return f"{type(member).__name__}: {member}"[:200]
        if member.litmus != harness.__version__:
            return f"it has litmus {member.litmus}, this machine {harness.__version__}"
        for suite, code in self._code.items():
            if member.code.get(suite) != code:
                return f"it has {'other code of' if suite in member.code else 'no'} {suite}"
        return None

    def _admit(self, met: Mapping[str, Member]) -> None:
        for address, member in met.items():
            ours, theirs = _numbers_depend_on(self.software), _numbers_depend_on(member.software)
            other = sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))
            if other:
                said = ", ".join(f"{name} {theirs.get(name, 'absent')} instead of {ours.get(name, 'none')}"
                                 for name in other)
                self.left_out[address] = (member.name, f"other libraries: {said}")
            else:
                self.members[address] = member

    def refresh(self) -> None:
        """Look who is there, at most once a second."""
        with self._lock:
            if time.monotonic() - self._looked_s < _REFRESH_S:
                return
            self._alive = frozenset(self._client.nthreads())
            known = set(self.members) | set(self.left_out)
            self._admit(self._meet(self._alive - known))
            self._looked_s = time.monotonic()

    def drop(self, address: str, fault: str) -> None:
        """Leave this member out from now on."""
        self.left_out[address] = (self.members.pop(address).name, fault)

    def alive(self) -> list[Member]:
        """The members that are there, in order of their names."""
        found = [member for address, member in self.members.items() if address in self._alive]
        return sorted(found, key=lambda member: member.name)

    def able(self, need: Need) -> list[Member]:
        """Who is there and can meet the need; of those who could be alone with a device always the same one."""
        found = [member for member in self.alive() if need.is_met_by(member)]
        if found:
            self._gone_s.pop(need, None)
        if not need.alone or not found:
            return found
        if self._home.get(need.device) not in found:
            self._home[need.device] = found[0]
        return [self._home[need.device]]

    def given_up(self, need: Need) -> bool:
        """Whether nobody can be expected to meet this need any more; asked while nobody does."""
        possible = any(need.is_met_by(member) for member in self.members.values())
        since_s = self._gone_s.setdefault(need, time.monotonic())
        return not possible or time.monotonic() - since_s > _RETURN_S


def _numbers_depend_on(versions: Mapping[str, str]) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name != "kernel"}
