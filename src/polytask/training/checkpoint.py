"""Checkpoints: one file with all state and a fingerprint, and the parts of that state; reading one runs no code."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "polytask checkpoint"
VERSION = 1


def write(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Writes a checkpoint under a temporary name, then renames it: the name never holds half a file.

    Args:
        path: the file; its folder is made if need be.
        state: tensors, numbers, strings, None, lists and dictionaries.

    Raises:
        OSError: the folder cannot be written.
        TypeError: the state holds something that cannot be read back without running code (named).
    """
    _check_plain(state, "state")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f"{target.name}.*.part"):
        stale.unlink(missing_ok=True)  # of a process that was killed while it wrote
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        torch.save({"format": FORMAT, "version": VERSION, "state": dict(state)}, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_plain(part, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            _check_plain(part, f"{where}[{index}]")
    elif type(value) not in (int, float, bool, str, type(None)) and not isinstance(value, Tensor):
        raise TypeError(
            f"a checkpoint may hold tensors, numbers, strings, lists and dictionaries, found "
            f"{type(value).__name__} at {where}"
        )


def read(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, not a polytask checkpoint, or of a newer format.
    """
    target = Path(path)
    if not target.is_file():
        raise FileNotFoundError(f"a checkpoint to resume from must exist, found no file {target}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on foreign pickles before it refuses them
            content = torch.load(target, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file may fail in any way, OSError included
        raise ValueError(
            f"{target} must be a polytask checkpoint, found a damaged or foreign file ({_first_line(error)})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{target} must be a polytask checkpoint, found another kind of file")
    if not isinstance(content.get("version"), int) or not content.get("state"):
        raise ValueError(f"{target} must be a polytask checkpoint, found one without its version or its state")
    if content["version"] > VERSION:
        raise ValueError(
            f"{target} must have format version {VERSION} or lower, found {content['version']}: it was written "
            "by a newer polytask"
        )
    return content["state"]


def refusal(path: str | Path, saved: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """Why a checkpoint with the fingerprint `saved` does not fit, naming every difference; "" if it fits."""
    differing = [
        f"{key}: saved {saved.get(key)!r}, found {present.get(key)!r}"
        for key in dict.fromkeys([*saved, *present])
        if saved.get(key) != present.get(key)
    ]
    if not differing:
        return ""
    rule = f"{path} must come from the same model, data, settings, versions and threads"
    return f"{rule}; different: {'; '.join(differing)}"


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """State whose tensors training does not go on changing."""
    return {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in state.items()}


def on_host(state: Any) -> Any:
    """Nested state with its tensors on the CPU: another rank must not unpack them onto this one's device."""
    if isinstance(state, Mapping):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [on_host(value) for value in state]
    return state.cpu() if isinstance(state, Tensor) else state


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators: of the CPU, and of the device that the model is on."""
    state = {"cpu": torch.random.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts back what `random_state` gave."""
    torch.random.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
