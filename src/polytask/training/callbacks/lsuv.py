"""Initial weights that depend on the data, drawn when a fit begins."""

from __future__ import annotations

import functools
import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any, final

from polytask.batch import Batch
from polytask.callback import Callback
from polytask.errors import whole
from polytask.models.initialisation import check_lsuv, lsuv_over, not_reached
from polytask.training.together import align

if TYPE_CHECKING:
    from polytask.training.run import Run

logger = logging.getLogger("polytask")


@final
class LSUV(Callback):
    """Layer-sequential unit-variance initialisation on training data, before the first update of a fit.

    Calls `polytask.models.lsuv` on the first training examples in storage order, of each source if there are several,
    and as many of those with the first target of a task that these lack, nothing augmented, and under the trainer's
    seed. What several of these batches run through, such as the trunk that sources share, gets its standard deviation
    over all of them together; towers that start equal stay so. Layers that none of them reaches are named in a
    warning. Whatever weights the network had are lost, those of a configuration's ``start`` or of an earlier fit among
    them; a resumed fit goes on with its own. Of several processes all end with the weights of the first. In
    `polytask sparsify` it belongs to the search: ``search: {callbacks: [LSUV]}``.

    Paper: Mishkin and Matas, *All you need is a good init*, `arXiv:1511.06422 <https://arxiv.org/abs/1511.06422>`_.

    Args:
        examples: of each source, and for each task that has no target among these, at least 2.
        std: wanted standard deviation of every layer's outputs, above 0.
        tolerance: how far from it is near enough, above 0.
        tries: divisions per layer, at least 1.

    Raises:
        ValueError: a number is out of range; at the start of a fit: no layer runs, or a layer's outputs are constant or
            not finite.

    >>> LSUV(examples=128).describe()
    {'callback': 'LSUV', 'examples': 128, 'std': 1.0, 'tolerance': 0.1, 'tries': 10}
    """

    initialises = True

    def __init__(self, examples: int = 256, std: float = 1.0, tolerance: float = 0.1, tries: int = 10) -> None:
        whole("examples", examples, 2)
        check_lsuv(std, tolerance, tries)
        self.examples = examples
        self.std = std
        self.tolerance = tolerance
        self.tries = tries

    def on_fit_start(self, run: Run) -> None:
        def call(batch: Batch) -> Any:
            names = [name for name in run.trainer.tasks if batch.counts.get(name)]
            return run.model(batch.inputs, names or None, batch.source)

        reached = lsuv_over(
            run.model, [functools.partial(call, batch) for batch in self._batches(run)], std=self.std,
            tolerance=self.tolerance, tries=self.tries, seed=run.trainer.seed,
        )  # fmt: skip
        unseen = not_reached(run.model, reached)
        align([run.model], run.ranks)
        missed = {name: value for name, value in reached.items() if abs(value - self.std) > self.tolerance}
        logger.info("LSUV: %d layers have a standard deviation of %g", len(reached) - len(missed), self.std)
        if unseen:
            logger.warning("LSUV: layers that the training data do not reach keep their weights: %s", ", ".join(unseen))
        for name, value in missed.items():
            logger.warning("LSUV: after %d tries the outputs of `%s` deviate by %.3g", self.tries, name, value)

    def _batches(self, run: Run) -> list[Batch]:
        """The first batch of each source, and those after it that bring a task; the source is left as it was."""
        found: list[Batch] = []
        tasks, sources = set(run.trainer.tasks), set(run.train.parts)
        state = run.train.state_dict()
        with closing(run.train.in_order(self.examples)) as batches:  # pyright: ignore[reportArgumentType] (a generator)
            for batch in batches:
                new = tasks & {name for name, count in batch.counts.items() if count}
                if batch.source in sources or (new and batch.size > 1):  # one example alone has no deviation
                    found.append(batch)
                    sources.discard(batch.source)
                    tasks -= new
                if not tasks and not sources:
                    break
        run.train.load_state_dict(state)
        return found
