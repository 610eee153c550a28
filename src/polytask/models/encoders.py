"""Networks to build trunks and heads from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn

from polytask.errors import one_of, whole

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


@final
class MLP(nn.Sequential):
    """Fully connected layers: each width is a Linear and an activation, `outputs` a last bare Linear.

    Args:
        inputs: width of the input, at least 1; inputs of more dimensions are flattened, (B, ...) to (B, D).
        widths: hidden widths, each at least 1.
        outputs: width of a last linear layer without activation; None to end with the last hidden layer.
        dropout: probability after each hidden layer, in [0, 1).
        activation: ``relu``, ``tanh``, ``gelu`` or ``silu``.
        init: ``default`` (torch's) or ``glorot``: Glorot-uniform weights and zero biases, as in Keras.

    Raises:
        ValueError: a width below 1, both `widths` and `outputs` empty, or an unknown name.

    >>> import torch
    >>> MLP(2, [64, 64], outputs=1)(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int] = (),
        outputs: int | None = None,
        dropout: float = 0.0,
        activation: str = "relu",
        init: str = "default",
    ) -> None:
        one_of("activation", activation, ACTIVATIONS)
        one_of("init", init, ("default", "glorot"))
        if not widths and outputs is None:
            raise ValueError("an MLP must have `widths` or `outputs`, found neither")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), found {dropout}")
        for width in (inputs, *widths, *([] if outputs is None else [outputs])):
            whole("width", width, 1)
        layers: list[nn.Module] = []
        for before, after in zip((inputs, *widths), widths, strict=False):
            layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
            layers += [nn.Dropout(dropout)] if dropout else []
        if outputs is not None:
            layers.append(nn.Linear((inputs, *widths)[-1], outputs))
        super().__init__(*layers)
        if init == "glorot":
            self.apply(_glorot)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1) if input.dim() > 2 else input)


def _glorot(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


@final
class LeNet(nn.Sequential):
    """The small convolutional trunk for 28x28 grey images used throughout multi-task MNIST studies.

    Conv(1, 10, 5) Pool(2) ReLU Conv(10, 20, 5) Pool(2) ReLU Linear(320, 50) ReLU: 21,330 parameters, and
    22,350 with two heads Linear(50, 10). Settings as in Hotegni et al. 2024, `arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_.

    Args:
        channels: colour channels of the input, (B, channels, 28, 28).
        outputs: width of the features, (B, outputs).

    >>> import torch
    >>> LeNet()(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 50])
    """

    def __init__(self, channels: int = 1, outputs: int = 50) -> None:
        whole("channels", channels, 1)
        whole("outputs", outputs, 1)
        super().__init__(
            nn.Conv2d(channels, 10, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(320, outputs), nn.ReLU(),
        )  # fmt: skip
