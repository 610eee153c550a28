"""``polytask evaluate``, ``predict`` and ``export``: what is done with a trained run."""

from __future__ import annotations

import sys
from pathlib import Path

from polytask.cli.words import parsed


def _note_which(folder: str) -> None:
    """Says which run is meant where one was trained in the folder of a comparison."""
    from polytask.studies.run_folder import compared_beside

    if runs := compared_beside(Path(folder)):
        print(f"note: {folder} is the run that `train` made; compared runs are in e.g. {runs[0]}", file=sys.stderr)


def evaluate_command(words: list[str]) -> int:
    """losses and metrics of a trained run: RUN [--split test] [--file labelled.csv]"""
    from polytask.studies.trained_runs import evaluate_run

    given = parsed("evaluate", evaluate_command.__doc__, words, evaluate_run)
    _note_which(given.folder)
    for name, value in evaluate_run(given.folder, given.split, given.file).items():
        print(f"{name:<24} {value:.6g}")
    return 0


def predict_command(words: list[str]) -> int:
    """predictions for new inputs: RUN INPUT.csv|.npy|.npz|.parquet [--out predictions.csv] [--source NAME]"""
    from polytask.studies.tables import predict_file

    given = parsed("predict", predict_command.__doc__, words, predict_file)
    _note_which(given.folder)
    text = predict_file(given.folder, given.inputs, given.out, given.source)
    print(f"predictions in {given.out}" if given.out else text, end="\n" if given.out else "")
    return 0


def export_command(words: list[str]) -> int:
    """write a trained run's network as a file: RUN [--format onnx|torch] [--out FILE] [--source NAME]"""
    from polytask.studies.trained_runs import export_run

    given = parsed("export", export_command.__doc__, words, export_run)
    path = export_run(given.folder, given.format, given.out, given.source)
    print(f"{path}, checked against PyTorch; inputs, outputs and preprocessing in {path}.json")
    return 0
