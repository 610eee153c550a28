"""TorchJD's methods as balancers. The only file that knows that library."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from polytask.balancing.base import Aggregator, Evidence, JacobianAggregator, Needs, Scalarizer


@final
class TorchJD(JacobianAggregator):
    """Any aggregator, weighting or scalarizer of the TorchJD library, called as it is.

    An aggregator is given the Jacobian J (K, P) and gives the shared gradient (P,); a weighting is given the
    Gramian J Jᵀ (K, K) and gives K weights; a scalarizer is given the K losses, and its weights are the
    derivatives of its value. What ``TorchJD(method)`` returns is a balancer of that kind.

    Library: Quinton and Rey 2024, `arXiv:2406.16232 <https://arxiv.org/abs/2406.16232>`_,
    `torchjd.org <https://torchjd.org>`_; install it with ``pip install torchjd``. A scalarizer's own
    parameters (UW, IMTLL) take an Adam step after its value was read; ``update`` (FAMO) is called after the
    step and ``step`` (DWA) at the end of each epoch. Limits: a method that holds a number for every objective takes no
    step in which one is absent; state that a method keeps outside its parameters and buffers (averages,
    optimizers, earlier weights) is not in the checkpoint, so resuming is exact for methods without any.
    polytask's own methods have neither limit.

    Args:
        aggregator: an instance, for example ``torchjd.aggregation.UPGrad()``.
        lr: learning rate of a scalarizer's own parameters.

    Raises:
        ImportError: TorchJD is not installed.
        TypeError: not an aggregator, weighting or scalarizer of TorchJD.

    >>> from torchjd.aggregation import UPGrad
    >>> jacobian = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    >>> TorchJD(UPGrad()).combine(Evidence(["left", "right"], jacobian=jacobian))
    tensor([0.2929, 1.9004, 1.9004])
    """

    keeps = "a scalarizer's learned parameters"

    def __new__(cls, aggregator: Any = None, lr: float = 0.025) -> Any:
        if aggregator is None:  # a copy is being made
            return super().__new__(cls)
        kind = _kind(aggregator)
        if kind == "weighting":
            return _Weighting(aggregator)
        return _Scalarizer(aggregator, lr) if kind == "scalarizer" else super().__new__(cls)

    def __init__(self, aggregator: Any, lr: float = 0.025) -> None:
        _kind(aggregator)  # None passes `__new__`, for the sake of copies
        super().__init__()
        self.aggregator = aggregator

    def combine(self, evidence: Evidence) -> Tensor:
        with torch.no_grad():
            return self.aggregator(evidence.rows)

    def describe(self) -> dict[str, Any]:
        return _describe(self.aggregator)


@final
class _Weighting(Aggregator):
    def __init__(self, weighting: Any) -> None:
        super().__init__()
        self.weighting = weighting

    def combine(self, evidence: Evidence) -> Tensor:
        with torch.no_grad():
            return self.weighting(evidence.gramian)

    def describe(self) -> dict[str, Any]:
        return _describe(self.weighting)


@final
class _Scalarizer(Scalarizer):
    def __init__(self, scalarizer: Any, lr: float) -> None:
        super().__init__()
        self.scalarizer = scalarizer
        self._updates = hasattr(scalarizer, "update")
        if self._updates:
            self.needs = Needs.LOSSES | Needs.LOSSES_AFTER
        own = [] if self._updates else list(scalarizer.parameters())  # FAMO steps its own
        self._optimizer = torch.optim.Adam(own, lr=lr) if own else None

    def combine(self, evidence: Evidence) -> Tensor:
        losses = evidence.losses.clone().requires_grad_()
        own = [] if self._optimizer is None else self._optimizer.param_groups[0]["params"]
        with torch.enable_grad():
            value = self.scalarizer(losses)
        weights, *gradients = torch.autograd.grad(value, [losses, *own])
        if self._optimizer is not None:
            for parameter, gradient in zip(own, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            self._optimizer.zero_grad()
        return weights

    def after(self, losses: Mapping[str, Tensor]) -> None:
        if self._updates:
            self.scalarizer.update(torch.stack([loss.detach().float() for loss in losses.values()]))

    def observe(self, row: Mapping[str, Any]) -> None:
        if hasattr(self.scalarizer, "step"):
            self.scalarizer.step()

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self._optimizer is None else {"optimizer": copy.deepcopy(self._optimizer.state_dict())}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])

    def describe(self) -> dict[str, Any]:
        return _describe(self.scalarizer)


def _kind(method: Any) -> str:
    try:
        from torchjd.aggregation import Aggregator as Method
        from torchjd.aggregation import Weighting
        from torchjd.scalarization import Scalarizer as Scalar
    except ModuleNotFoundError as error:
        raise ImportError("`TorchJD` needs the library TorchJD, found none: pip install torchjd") from error
    for kind, base in (("aggregator", Method), ("weighting", Weighting), ("scalarizer", Scalar)):
        if isinstance(method, base):
            return kind
    found = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
    raise TypeError(f"`aggregator` must be an aggregator, weighting or scalarizer of TorchJD, found {found}")


def _describe(method: nn.Module) -> dict[str, Any]:
    return {"balancer": "TorchJD", "method": repr(method)}
