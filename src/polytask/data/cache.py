"""Tensors that take long to make, kept on disk between runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger("polytask")


def cache_folder() -> Path:
    """Where caches are: ``$POLYTASK_CACHE``, else ``~/.cache/polytask``."""
    folder = os.environ.get("POLYTASK_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "polytask"


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 of the contents of files, in order, in hexadecimal."""
    each = hashlib.sha256()
    for path in paths:
        # a digest of digests, so that bytes moved from one file to the next change it
        with path.open("rb") as file:
            each.update(hashlib.file_digest(file, "sha256").digest())
    return each.hexdigest()


def cached(name: str, facts: dict[str, Any], build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `build` returns, from the cache folder if it was built there before from the same facts.

    The file's name contains a digest of the facts, so other facts never find it. A file that is damaged (it
    carries a checksum) is built again and the damage logged; a cache that cannot be written is logged and
    done without. Files appear whole or not at all, so several processes may share a folder.

    Args:
        name: of the file, before the digest.
        facts: everything the result depends on; JSON values.
        build: makes the tensors: contiguous, on the CPU, not sharing memory.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / f"{name}-{key}.safetensors"
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, ValueError) as error:
        logger.warning("the cache file %s is damaged and will be built again: %s", path, error)
    tensors = build()
    try:
        _write(path, tensors)
    except (OSError, SafetensorError) as error:
        logger.warning("the cache file %s could not be written: %s", path, error)
    return tensors


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        stated = (file.metadata() or {}).get("checksum")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    found = _checksum(tensors)
    if stated != found:
        raise ValueError(f"its checksum must be {stated}, found {found}")
    return tensors


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_file(tensors, temporary, metadata={"checksum": _checksum(tensors)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(tensors: dict[str, Tensor]) -> str:
    # against accidents, not attacks: CRC-32 costs a fraction of what a cryptographic digest does
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.numpy().data, value)
    return f"{value:08x}"
