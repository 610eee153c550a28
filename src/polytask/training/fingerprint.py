"""A run's fingerprint: what must be equal for a resumed run to end with the same bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from polytask.training.run import Run


def fingerprint(run: Run) -> dict[str, Any]:
    """Names, shapes, settings, versions and threads; plain values, which a checkpoint may hold."""
    trainer = run.trainer
    return {
        "tasks": [task.describe() for task in trainer.tasks.values()],
        "weights": {name: [list(t.shape), str(t.dtype)] for name, t in run.model.state_dict().items()},
        "objectives": {name: objective.describe() for name, objective in trainer.objectives.items()},
        "gradients": trainer.gradients,
        "accumulate": trainer.accumulate,
        **trainer.schedule.describe(),
        "train": run.train.describe(),
        "validation": None if run.validation is None else run.validation.describe(),
        "callbacks": [callback.describe() for callback in run.acting],
        "cache_features": [trainer.cache_features, trainer.cache_limit, trainer.frozen_dropout],
        "balancing": trainer.balancer.describe(),
        **run.optimizers.describe(),
        "seed": trainer.seed,
        "precision": trainer.precision,
        "device": trainer.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "ranks": run.ranks.count,
    }
