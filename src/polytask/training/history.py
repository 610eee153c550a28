"""History: one row an epoch."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytask.errors import nearest

if TYPE_CHECKING:
    import pandas as pd


class History(Sequence[dict[str, Any]]):
    """The epochs of a run, one row each.

    Columns: ``epoch`` (from 1), ``phase``, ``train/loss`` (weighted sum over tasks), ``train/<task>/loss``,
    ``train/<task>/<metric>``, the same under ``validation/`` where there is validation data, ``lr`` (or
    ``lr/<group>``), ``seconds`` (training) and ``validation_seconds``. Training figures are those of the
    batches as they were trained on; validation figures are taken at the epoch's end.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._rows = [dict(row) for row in rows]

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds an epoch."""
        self._rows.append(dict(row))

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        """Equal in everything but the seconds."""
        return isinstance(other, History) and _timeless(self._rows) == _timeless(other._rows)

    __hash__ = None  # type: ignore[assignment]  # it changes, so it has none

    def column(self, name: str) -> list[Any]:
        """The values of one column, NaN where an epoch has none.

        Raises:
            KeyError: no epoch has such a column.

        >>> History([{"epoch": 1, "train/loss": 0.5}]).column("train/los")
        Traceback (most recent call last):
        KeyError: 'a column must be one of the history, found `train/los`: did you mean `train/loss`?'
        """
        known = self.columns
        if name not in known:
            hint = nearest(name, known) if self._rows else "it has no epochs yet"
            raise KeyError(f"a column must be one of the history, found `{name}`: {hint}")
        return [row.get(name, math.nan) for row in self._rows]

    @property
    def columns(self) -> list[str]:
        """All columns, in order of appearance."""
        return list(dict.fromkeys(key for row in self._rows for key in row))

    def frame(self) -> pd.DataFrame:
        """A pandas table, one row an epoch, indexed by ``epoch``."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=pd.Index(self.columns)).set_index("epoch")

    def write_csv(self, path: str | Path) -> None:
        """Writes the table as CSV: to a temporary name first, then renamed."""
        target = Path(path)
        temporary = target.with_name(target.name + ".part")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        os.replace(temporary, target)

    def __repr__(self) -> str:
        last = self._rows[-1] if self._rows else {}
        shown = ", ".join(f"{k}={v:.4g}" for k, v in last.items() if isinstance(v, float) and k.endswith("loss"))
        return f"History({len(self)} epochs; last: {shown})"


def _timeless(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    # repr, so that NaN equals NaN and every bit of a float counts
    return [{k: repr(v) for k, v in row.items() if not k.endswith("seconds")} for row in rows]
