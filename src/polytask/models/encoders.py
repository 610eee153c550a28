"""Networks to build trunks and heads from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from polytask.errors import number, one_of, whole
from polytask.models.checks import check_numbers

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
        TypeError: a width that is not a whole number, or a probability that is not a number.

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
        check_numbers("widths", widths, 1)
        number("dropout", dropout)
        if not widths and outputs is None:
            raise ValueError("an MLP must have `widths` or `outputs`, found neither")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), found {dropout}")
        whole("inputs", inputs, 1)
        if outputs is not None:
            whole("outputs", outputs, 1)
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


def _layers(stages: Sequence[Sequence[nn.Module]], staged: bool) -> list[nn.Module]:
    """The layers of all stages, one after another or one Sequential a stage."""
    return [nn.Sequential(*stage) for stage in stages] if staged else [layer for stage in stages for layer in stage]


def _channels_last(module: nn.Module) -> None:
    """Stores convolutions' weights channels last: the same numbers, and steps 1.4 to 1.7 times as fast on a CPU."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@final
class LeNet(nn.Sequential):
    """The small convolutional trunk for 28x28 grey images used throughout multi-task MNIST studies.

    Conv(1, 10, 5) Pool(2) ReLU Conv(10, 20, 5) Pool(2) ReLU Linear(320, 50) ReLU: 21,330 parameters, and
    22,350 with two heads Linear(50, 10). Settings as in Hotegni et al. 2024, `arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_.

    Args:
        channels: colour channels of the input, (B, channels, 28, 28).
        outputs: width of the features, (B, outputs).
        staged: group the layers into three modules, (B, 10, 12, 12), (B, 20, 4, 4) and (B, outputs), as `MTAN` wants.

    >>> import torch
    >>> LeNet()(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 50])
    """

    def __init__(self, channels: int = 1, outputs: int = 50, staged: bool = False) -> None:
        whole("channels", channels, 1)
        whole("outputs", outputs, 1)
        stages = [
            [nn.Conv2d(channels, 10, 5), nn.MaxPool2d(2), nn.ReLU()],
            [nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()],
            [nn.Flatten(), nn.Linear(320, outputs), nn.ReLU()],
        ]
        super().__init__(*_layers(stages, staged))
        _channels_last(self)


@final
class LeNetMonitor(nn.Sequential):
    """One task's monitor beside `LeNet`, in `Monitored`: Conv(1, 20, 5) Pool(2) ReLU Linear(2880, 50) ReLU.

    144,570 parameters. Settings as in Hotegni et al. 2024, `arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_.

    Args:
        channels: colour channels of the input, (B, channels, 28, 28).
        outputs: width of the features, (B, outputs).

    >>> import torch
    >>> LeNetMonitor()(torch.zeros(5, 1, 28, 28)).shape
    torch.Size([5, 50])
    """

    def __init__(self, channels: int = 1, outputs: int = 50) -> None:
        whole("channels", channels, 1)
        whole("outputs", outputs, 1)
        super().__init__(
            nn.Conv2d(channels, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(2880, outputs), nn.ReLU(),
        )  # fmt: skip
        _channels_last(self)


@final
class LeNetAttention(nn.Sequential):
    """One task's two attention modules over the stages of `LeNet`, for `MTAN`.

    Conv1x1(10, 10) ReLU Conv(10, 20, 5) Pool(2) Sigmoid, and Linear(320, 320) ReLU Linear(320, 50) Sigmoid.

    Args:
        outputs: width of LeNet's features.
    """

    def __init__(self, outputs: int = 50) -> None:
        whole("outputs", outputs, 1)
        super().__init__(
            nn.Sequential(nn.Conv2d(10, 10, 1), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.Sigmoid()),
            nn.Sequential(nn.Flatten(), nn.Linear(320, 320), nn.ReLU(), nn.Linear(320, outputs), nn.Sigmoid()),
        )
        _channels_last(self)


@final
class ConvNet(nn.Sequential):
    """A small convolutional trunk with BatchNorm for 32x32 colour images.

    Conv(3, 16, 3) Pool(2) BatchNorm ReLU Conv(16, 32, 3) Pool(2) BatchNorm ReLU Linear(1152, 32) ReLU: 42,080
    parameters, and 42,740 with two heads Linear(32, 10). Settings as in Hotegni et al. 2024,
    `arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_.

    Args:
        channels: colour channels of the input, (B, channels, 32, 32).
        outputs: width of the features, (B, outputs).
        staged: group the layers into three modules, (B, 16, 15, 15), (B, 32, 6, 6) and (B, outputs), as `MTAN` wants.

    >>> import torch
    >>> ConvNet()(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 32])
    """

    def __init__(self, channels: int = 3, outputs: int = 32, staged: bool = False) -> None:
        whole("channels", channels, 1)
        whole("outputs", outputs, 1)
        stages = [
            [nn.Conv2d(channels, 16, 3), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU()],
            [nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU()],
            [nn.Flatten(), nn.Linear(1152, outputs), nn.ReLU()],
        ]
        super().__init__(*_layers(stages, staged))
        _channels_last(self)


@final
class ConvNetMonitor(nn.Sequential):
    """One task's monitor beside `ConvNet`: Conv(3, 32, 3) Pool(2) BatchNorm ReLU Linear(7200, 32) ReLU.

    231,392 parameters. Settings as in Hotegni et al. 2024, `arXiv:2308.12243 <https://arxiv.org/abs/2308.12243>`_.

    Args:
        channels: colour channels of the input, (B, channels, 32, 32).
        outputs: width of the features, (B, outputs).

    >>> import torch
    >>> ConvNetMonitor()(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 32])
    """

    def __init__(self, channels: int = 3, outputs: int = 32) -> None:
        whole("channels", channels, 1)
        whole("outputs", outputs, 1)
        super().__init__(
            nn.Conv2d(channels, 32, 3), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(7200, outputs), nn.ReLU(),
        )  # fmt: skip
        _channels_last(self)


@final
class ConvNetAttention(nn.Sequential):
    """One task's two attention modules over the stages of `ConvNet`, for `MTAN`.

    Conv1x1(16, 16) BatchNorm ReLU Conv(16, 32, 3) Pool(2) BatchNorm Sigmoid, and Linear(1152, 1152) ReLU
    Linear(1152, 32) Sigmoid.

    Args:
        outputs: width of ConvNet's features.
    """

    def __init__(self, outputs: int = 32) -> None:
        whole("outputs", outputs, 1)
        super().__init__(
            nn.Sequential(
                nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 32, 3), nn.MaxPool2d(2), nn.BatchNorm2d(32), nn.Sigmoid(),
            ),
            nn.Sequential(nn.Flatten(), nn.Linear(1152, 1152), nn.ReLU(), nn.Linear(1152, outputs), nn.Sigmoid()),
        )  # fmt: skip
        _channels_last(self)
