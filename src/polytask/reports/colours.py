"""The colours, dashes and marks of methods, and the scale of signed figures: the same in every page and picture."""

from __future__ import annotations

# Okabe and Ito's colours without yellow and black, which vanish on white and on black; then grey
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#888888")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up")

GREY = "#888888"
"""What belongs to no method."""

SIGNED = ("#a34d00", "#f9c58a", "#f7f7f7", "#9ecae1", "#045a8d")
"""From far below 0 to far above, in equal steps: orange and blue, told apart by all eyes."""

LEAST_AFFINITY = 1e-3
"""The affinity of the strongest colour is no smaller, so that noise around 0 looks pale."""


def style(number: int) -> tuple[str, str, str]:
    """Colour, dash and marker of method `number`: the same in every chart."""
    turn = number // len(COLOURS)
    return COLOURS[number % len(COLOURS)], DASHES[turn % len(DASHES)], SYMBOLS[turn % len(SYMBOLS)]
