"""How much memory a call may take that declares its workspace: one rule for validating and for reporting."""

from __future__ import annotations

# Pages and allocators round up, and a first use may load a page of code: this much is no allocation.
SLACK_BYTES, SLACK_SHARE = 2 * 2**20, 0.05


def allowed_bytes(workspace_bytes: float, returned_bytes: float) -> float:
    """What its peak may be: the declared workspace and the fresh result, and 2 MiB and 5 % for pages and allocators."""
    return (1 + SLACK_SHARE) * (workspace_bytes + returned_bytes) + SLACK_BYTES
