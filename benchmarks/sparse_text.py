"""Peak memory of sparse text, 100,000 x 50,000 CSR: served, and trained on, each in a process of its own.

Two figures: what is resident, and what NumPy allocated, of which pages of zeros that are only read take no memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from timing import record, stamp
from torch import nn

import polytask as pt
from polytask.task import named

TEXTS, WORDS, IN_A_TEXT = 100_000, 50_000, 60
BATCH, WIDTH = 256, 16
MIB = 2**20


def corpus() -> tuple[scipy.sparse.csr_array, dict[str, torch.Tensor]]:
    """Random words, made without anything larger than the matrix itself; some stand twice in a text."""
    random = np.random.default_rng(0)
    stored = random.random(TEXTS * IN_A_TEXT, dtype=np.float32)
    words = random.integers(0, WORDS, TEXTS * IN_A_TEXT, dtype=np.int32)
    ends = np.arange(0, len(words) + 1, IN_A_TEXT, dtype=np.int32)
    return scipy.sparse.csr_array((stored, words, ends), shape=(TEXTS, WORDS)), {"class": torch.arange(TEXTS) % 2}


def serve(data: tuple) -> None:
    """An epoch and a pass in order, as training and evaluation take them."""
    source = pt.Arrays(*data, batch_size=BATCH)
    source.bind(named([pt.binary("class")]), torch.device("cpu"), "train")
    source.describe()
    for (batch,) in source.steps(0):
        batch.inputs.sum()
    for batch in source.in_order(BATCH):
        batch.inputs.sum()


def train(data: tuple) -> None:
    """An epoch and predictions of a small network."""
    made = trainer(WORDS)
    made.fit(data, epochs=1)
    made.predict(data[0])


def trainer(words: int) -> pt.Trainer:
    model = pt.models.HardSharing(nn.Sequential(nn.Linear(words, WIDTH), nn.ReLU()), {"class": nn.Linear(WIDTH, 1)})
    return pt.Trainer(model, [pt.binary("class")], batch_size=BATCH, evaluation_batch_size=BATCH, progress=False)


def peak() -> float:
    """The most memory that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(work: str) -> None:
    """What a process of its own does and prints."""
    torch.set_num_threads(1)
    small = (
        scipy.sparse.random_array((2 * BATCH, 20), density=0.1, format="csr"),
        {"class": torch.arange(2 * BATCH) % 2},
    )
    trainer(20).fit(small, epochs=1)  # whatever is imported on first use
    trainer(20).evaluate(small)
    before = peak()
    tracemalloc.start()
    data = corpus()
    {"serve": serve, "train": train}[work](data)
    csr = sum(part.nbytes for part in (data[0].data, data[0].indices, data[0].indptr)) / MIB
    print(json.dumps([csr, peak() - before, tracemalloc.get_traced_memory()[1] / MIB]))


def in_a_process(work: str) -> list[float]:
    """The MiB of CSR, resident and allocated by NumPy."""
    done = subprocess.run([sys.executable, Path(__file__), work], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    torch.set_num_threads(1)  # as in the processes that are measured
    batch = BATCH * WORDS * 4 / MIB
    network = 2 * WIDTH * WORDS * 4 / MIB
    lines = ["| | CSR MiB | resident MiB | allocated MiB | target MiB | |", "|---|---|---|---|---|---|"]
    for work, name in {"serve": "served only", "train": "training, then predictions"}.items():
        csr, resident, allocated = in_a_process(work)
        target = csr + 2 * batch
        verdict = "met" if max(resident, allocated) <= target else "missed"
        lines.append(f"| {name} | {csr:.1f} | {resident:.1f} | {allocated:.1f} | ≤ {target:.1f} | {verdict} |")
    whole = TEXTS * WORDS * 4 / MIB
    note = (
        f"Target: CSR + 2 batches of {batch:.1f} MiB, made dense; the whole would take {whole:,.0f} MiB. Training's "
        f"figure holds the network too, {network:.1f} MiB of weights and their gradient, for which no more is allowed."
    )
    title = f"### Sparse text, {TEXTS:,} x {WORDS:,}, batches of {BATCH}: most memory above what the program had before"
    table = [title, "", stamp(), "", *lines, "", note]
    print("\n".join(table))
    record(table)


if __name__ == "__main__":
    measured(sys.argv[1]) if len(sys.argv) > 1 else main()
