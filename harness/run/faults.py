"""What an exception of a suite says in one line, and whether it means that memory ran out."""

from __future__ import annotations

from harness.errors import LitmusError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, Python's, the CPU allocator's or CUDA's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))


def describe(error: BaseException) -> str:
    """An exception as one line: its type and first sentence."""
    if isinstance(error, LitmusError):
        return error.problem + (f" ({error.expected})" if error.expected else "")
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
