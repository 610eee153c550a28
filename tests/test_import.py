"""What `import polytask` brings along, in a fresh process."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import polytask as pt
heavy = {"jsonargparse", "lightning", "matplotlib", "pandas", "plotly", "polytask.studies", "sklearn", "torchmetrics"}
print(sorted(heavy & set(sys.modules)))
print(sorted(set(pt.__all__) - set(dir(pt))), "studies" in dir(pt))
print(pt.studies.trained.__name__, pt.studies is sys.modules["polytask.studies"])
print(pt.compare is pt.studies.compare)
print(hasattr(pt, "study"))
"""


def test_studies_come_when_asked_for_and_not_before():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[]", "[] True", "trained True", "True", "False"]
