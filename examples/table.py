"""From a table to compared models and predictions in three commands, on a generated table of customers.

    python examples/table.py              # 50,000 rows x 14 columns, 3 methods x 3 seeds, timed
    python examples/table.py 2000 2       # fewer rows, fewer epochs

Writes customers.csv, customers.yaml, runs/ and predictions.csv into the working folder, and prints each command with
the seconds it took: by the clock, and of all processors together, which other work on the machine does not lengthen.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd


def customers(rows: int, seed: int = 0) -> pd.DataFrame:
    """Twelve columns that tell something, or nothing, about the last two: who will leave, who will spend how much."""
    random = np.random.default_rng(seed)
    age = random.integers(18, 90, rows)
    years = random.gamma(2.0, 2.5, rows).round(1)
    visits = random.poisson(4 + years / 3)
    region = random.choice(["north", "east", "south", "west"], rows, p=[0.4, 0.3, 0.2, 0.1])
    plan = random.choice(["basic", "plus", "family", "office"], rows)
    device = random.choice(["phone", "tablet", "laptop"], rows)
    taste = random.normal(size=rows)
    columns = {
        "customer": [f"C{number:06d}" for number in range(rows)],
        "age": age,
        "years": years,
        "visits": visits,
        "region": region,
        "plan": plan,
        "device": device,
        "town": [f"town {number}" for number in random.zipf(1.6, rows) % 300],
        "discount": random.choice([0, 5, 10, 20], rows),
        "rating": (taste + random.normal(scale=0.5, size=rows)).round(2),
        "calls": random.poisson(1.0, rows),
        "noise": random.normal(size=rows).round(3),
    }
    frame = pd.DataFrame(columns)
    risk = 0.8 * (plan == "basic") - 0.15 * years + 0.5 * frame["calls"] - 0.6 * taste - 0.02 * (age - 50)
    spent = 20 + 6 * visits + 15 * (plan == "family") + 8 * taste + 0.2 * age * (device == "laptop")
    frame["leaves"] = np.where(risk + random.logistic(size=rows) > 0, "yes", "no")
    frame["spent"] = (spent + random.normal(scale=10, size=rows)).round(2)
    for column, share in (("rating", 0.2), ("device", 0.05), ("spent", 0.1)):
        frame.loc[random.random(rows) < share, column] = None
    return frame


def timed(*words: str) -> float:
    """Runs a command of polytask; returns its seconds by the clock."""
    print("$ polytask", *words, flush=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "polytask", *words], check=True)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"# {seconds:.1f} s, {cpu:.1f} s of processor time\n", flush=True)
    return seconds


def main(rows: int = 50_000, epochs: int | None = None) -> float:
    """The three commands; returns their seconds together."""
    everyone = customers(rows + 1_000)
    everyone[:rows].to_csv("customers.csv", index=False)
    everyone[rows:].drop(columns=["leaves", "spent"]).to_csv("new.csv", index=False)
    Path("customers.yaml").unlink(missing_ok=True)
    fewer = [] if epochs is None else ["--epochs", str(epochs)]
    methods = ["--methods", "UPGrad", "--weights", "1", "--seeds", "0,1,2"]  # beside single-task and joint training
    seconds = timed("init", "customers.csv", "--targets", "leaves", "spent")
    seconds += timed("compare", "customers.yaml", *methods, *fewer, "--overwrite")
    seconds += timed("predict", "runs/customers/UPGrad/seed-0", "new.csv", "--out", "predictions.csv")
    print(f"all three: {seconds:.1f} s")
    return seconds


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
