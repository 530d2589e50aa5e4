"""Which schedulers may be talked to: whoever reaches one runs code on its workers, and reads what they send."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from harness.errors import LitmusError

_ENCRYPTED = ("tls", "wss")
_KNOWN = (*_ENCRYPTED, "tcp", "ws")


def checked_address(text: str, *, insecure: bool) -> str:
    """``text`` with its scheme, ``tcp`` where it has none.

    Raises LitmusError where it is no address, and for one without TLS on another machine unless ``insecure``.
    """
    address = text if "://" in text else f"tcp://{text}"
    try:
        parts = urlsplit(address)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in _KNOWN or not host or port is None:
        raise LitmusError("not the address of a scheduler", where="the command line", key="--scheduler", value=text,
                          expected="such as tls://head:8786 or tcp://127.0.0.1:8786",
                          next_step="start one on this machine with: litmus cluster up --local 2")
    if scheme not in _ENCRYPTED and not insecure and not _is_loopback(host):
        raise LitmusError("the scheduler is on another machine and its address is without TLS",
                          where="the command line", key="--scheduler", value=text,
                          expected="tls://..., since whoever reaches it can run code on the workers",
                          next_step="set TLS up as docs/clusters.md says, or add --insecure on a network you trust")
    return address


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
