"""Balancing in a LightningModule with manual optimisation; needs ``pip install pytorch-lightning``.

Works with ``precision="bf16-mixed"`` too. Lightning's DDP strategy reduces gradients in hooks that run during
``backward``, which balancing does not call: use one device here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polytask as pt

try:
    import pytorch_lightning as lightning
except ModuleNotFoundError as error:
    raise SystemExit("this example needs Lightning: pip install pytorch-lightning") from error


class TwoTasks(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # polytask takes the gradients
        self.trunk = nn.Sequential(nn.Linear(4, 32), nn.Tanh())
        self.heads = nn.ModuleDict({"sign": nn.Linear(32, 1), "total": nn.Linear(32, 1)})
        self.balancer = pt.aggregation.MGDA()  # a module, so what it learns is in Lightning's checkpoints
        self.seen: list[float] = []

    def training_step(self, batch: list[Tensor], index: int) -> None:
        x, sign, total = batch
        z = self.trunk(x)
        outputs = {name: head(z).squeeze(1) for name, head in self.heads.items()}
        losses = {
            "sign": F.binary_cross_entropy_with_logits(outputs["sign"], sign),
            "total": F.mse_loss(outputs["total"], total),
        }
        optimizer = self.optimizers()
        optimizer.zero_grad()
        pt.balance(losses, shared=self.trunk, balancer=self.balancer)  # was: self.manual_backward(...)
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        self.seen.append(sum(loss.item() for loss in losses.values()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # a balancer's own weights are stepped by the balancer
        return torch.optim.SGD([*self.trunk.parameters(), *self.heads.parameters()], lr=0.2)


def train(epochs: int = 5, **options: object) -> list[float]:
    """The sum of losses at every step."""
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).float(), x.sum(1))
    model = TwoTasks()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", **quiet, **options)
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=64, shuffle=True))
    return model.seen


if __name__ == "__main__":
    found = train()
    print(f"sum of losses: {found[0]:.3f} at the first step, {found[-1]:.3f} at the last")
