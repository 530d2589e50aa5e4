"""How much memory an optimizer keeps between steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch


def state_bytes(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor] | None = None) -> int:
    """Bytes of all tensors reachable from the optimizer, each storage once, without the parameters and their gradients.

    Codes, scales, maps, projectors and counters all count, wherever the optimizer keeps them. With ``parameters`` only
    what belongs to these: their entries of ``optimizer.state``.
    """
    if parameters is None:
        roots: list[Any] = [value for name, value in vars(optimizer).items() if name != "param_groups"]
    else:
        roots = [optimizer.state[p] for p in parameters if p in optimizer.state]
    own = {_memory(p) for group in optimizer.param_groups for p in group["params"]}
    own |= {_memory(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    storages = {_memory(tensor): tensor.untyped_storage().nbytes() for tensor in tensors_in(roots)}
    return sum(size for place, size in storages.items() if place not in own)


def _memory(tensor: torch.Tensor) -> int:
    """What tells one piece of memory from another; meta tensors have none, so each is its own."""
    return id(tensor) if tensor.device.type == "meta" else tensor.untyped_storage().data_ptr()


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor in nested mappings, sequences, sets and objects; the keys of mappings are not walked."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, str | bytes | int | float | type) or callable(value):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    if isinstance(value, Mapping):
        children: Iterable[Any] = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        children = value
    else:
        children = vars(value).values() if hasattr(value, "__dict__") else ()
    for child in children:
        yield from tensors_in(child, seen)
