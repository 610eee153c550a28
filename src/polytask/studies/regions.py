"""What a network of two inputs predicts all over the plane, for pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.data.base import Split, Splits
from polytask.training.trainer import Trainer

GRID = 121
POINTS = 500


def write_regions(trainer: Trainer, splits: Splits, folder: Path) -> None:
    """For inputs of two numbers, writes what is predicted all over the plane, for pictures: ``regions.npz``.

    Holds ``x`` and ``y`` (121,), the grid over the data's bounding box; ``<task>`` (121, 121), rows along
    y: the positive class's probability (binary), the label (classification) or the value (regression);
    ``points`` (at most 500, 2), test inputs, and ``targets_<task>``, their targets.
    """
    import numpy as np

    train, test = splits.train, splits.test
    if not isinstance(train, Split) or not isinstance(test, Split):
        return  # several sources have no plane in common
    inputs = train.inputs
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.shape[1] != 2:
        return
    everything = torch.cat([inputs, test.inputs])
    low, high = everything.min(0).values, everything.max(0).values
    x, y = (torch.linspace(low[i].item(), high[i].item(), GRID) for i in (0, 1))
    grid = torch.cartesian_prod(y, x).flip(1).to(inputs.dtype)  # (121 * 121, 2), x fastest
    content: dict[str, Any] = {"x": x.numpy(), "y": y.numpy()}
    for name, prediction in trainer.predict(grid).items():
        positive = prediction.probabilities is not None and prediction.probabilities.dim() == 1
        values = prediction.probabilities if positive else prediction.values
        if values is not None and values.dim() == 1:
            content[name] = values.reshape(GRID, GRID).cpu().numpy()
            content[f"targets_{name}"] = test.targets[name][:POINTS].numpy()
    content["points"] = test.inputs[:POINTS].numpy()
    with (folder / "regions.npz.part").open("wb") as file:
        np.savez_compressed(file, **content)
    os.replace(folder / "regions.npz.part", folder / "regions.npz")
