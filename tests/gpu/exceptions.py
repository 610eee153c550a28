"""What may wait for the device, or cannot be captured, and why: the one list."""

from __future__ import annotations

OF_ANOTHER_LIBRARY = {"TorchJD": "another library's code runs as it is"}

EIGH = "`torch.linalg.eigh` waits for its error code"

WAITS: dict[str, tuple[int, str]] = {
    "AlignedMTL": (2, EIGH),
    "ConFIG": (3, EIGH),
    "IMTLG": (3, EIGH),
}
"""Balancer -> (the number of tasks from which it waits, why). Besides: any balancer's first step with an objective
(its loss is looked at), and any step with a gradient scaler (it asks whether gradients overflowed, as
`GradScaler.step` does)."""

HOST_DRAWS: dict[str, tuple[int, str]] = {
    "Random": (2, "weights are drawn on the host, so a captured step would repeat its own"),
    "PCGrad": (3, "orders are drawn on the host, so a captured step would repeat its own"),
    "GradVac": (3, "orders are drawn on the host, so a captured step would repeat its own"),
}
"""Balancer -> (the number of tasks from which its steps must not be captured in a CUDA graph, why)."""
