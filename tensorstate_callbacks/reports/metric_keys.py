"""Metric keys that every logger accepts."""

import hashlib
import re
from collections.abc import Iterable

# What MLflow takes: no other characters, no longer keys, no path that isn't in its plainest form.
_MAX_LENGTH = 250
_UNSAFE = re.compile(r"[^\w\-. :/]", re.ASCII)


def safe_key(key: str) -> str:
    """Return `key` with what a logger would refuse replaced by `_`.

    Keys over 250 characters are cut and end in a digest of the whole, so that they stay distinct.

    Example:
        >>> safe_key("val_efficiency/block[0]/conv")
        'val_efficiency/block_0_/conv'
    """
    parts = (part for part in _UNSAFE.sub("_", key).split("/") if part)
    safe = "/".join("_" * len(part) if set(part) == {"."} else part for part in parts)
    if len(safe) <= _MAX_LENGTH:
        return safe
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"{safe[: _MAX_LENGTH - 9]}_{digest}"


def layer_keys(names: Iterable[str]) -> list[str]:
    """Return one safe key per layer name; names that become alike get `_2`, `_3`... appended.

    Example:
        >>> layer_keys(["a[0]", "a(0)", "b"])
        ['a_0_', 'a_0__2', 'b']
    """
    keys: list[str] = []
    for name in names:
        key = safe = safe_key(name)
        number = 2
        while key in keys:
            key = f"{safe}_{number}"
            number += 1
        keys.append(key)
    return keys
