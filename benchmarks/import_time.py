"""How long `import polytask` takes beyond `import torch`."""

from __future__ import annotations

import statistics
import subprocess
import sys

from timing import record

CODE = """
import time, sys
start = time.perf_counter(); import torch; middle = time.perf_counter(); import polytask
polytask.Trainer, polytask.data, polytask.models, polytask.aggregation, polytask.distillation  # found when first used
print(middle - start, time.perf_counter() - middle)
heavy = {"lightning_fabric", "torchmetrics", "sklearn", "pandas", "plotly", "matplotlib", "scipy"}
print(",".join(sorted(heavy & set(sys.modules))))
"""


def main():
    beyond, heavy = [], ""
    for _ in range(7):
        out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
        times, heavy = out.splitlines()[0], "".join(out.splitlines()[1:])
        beyond.append(float(times.split()[1]))
    middle = statistics.median(beyond)
    verdict = "met" if middle <= 0.5 else "missed"
    text = (
        f"`import polytask` beyond `import torch`: median {middle:.3f} s of 7, from {min(beyond):.3f} to "
        f"{max(beyond):.3f} s (target ≤ 0.5: {verdict}); heavy packages imported: {heavy or 'none'}."
    )
    print(text)
    record([text])


if __name__ == "__main__":
    main()
