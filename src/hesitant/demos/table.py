"""The table of a demo's figures, for the terminal."""

from collections.abc import Callable
from typing import Final

from rich.table import Table

from hesitant.demos.result import DemoResult, Figures


def result_table(result: DemoResult) -> Table:
    """A column a method, a row a figure: four methods fit into 80 characters.

    Rows that no method fills are left out.
    """
    table = Table(
        title=f"{result.demo}, seed {result.seed}, {result.epochs} epochs, {result.device}",
        title_style="bold",
        title_justify="left",
    )
    table.add_column("")
    for figures in result.methods.values():
        table.add_column(figures.name, justify="right", min_width=7)
    for number, group in enumerate(GROUPS):
        if number > 0:
            table.add_section()
        for heading, read, digits in group:
            values = [read(figures) for figures in result.methods.values()]
            if any(value is not None for value in values):
                cells = ["" if value is None else _text(value, digits) for value in values]
                table.add_row(heading.format(predict_inputs=result.predict_inputs), *cells)
    return table


Row = tuple[str, Callable[[Figures], float | None], int]  # its heading, what it reads, how many decimals it shows

GROUPS: Final[tuple[tuple[Row, ...], ...]] = (
    (
        ("held-out accuracy", lambda figures: figures.accuracy, 4),
        ("held-out NLL", lambda figures: figures.nll, 4),
        ("held-out ECE", lambda figures: figures.ece, 4),
    ),
    (
        ("u on training points", lambda figures: figures.u_training, 3),
        ("u on out-of-domain points", lambda figures: figures.u_ood, 3),
        ("u at the grid's corners", lambda figures: figures.u_corners, 3),
        ("AUROC of u, out-of-domain", lambda figures: figures.auroc, 4),
    ),
    (
        ("training, seconds", lambda figures: figures.training_seconds, 2),
        ("{predict_inputs}, milliseconds", lambda figures: figures.predict_milliseconds, 1),
    ),
)


def _text(value: float, digits: int) -> str:
    rounded = f"{value:.{digits}f}"
    # What is not zero must not read as zero: an NLL of 1e-5 and a u of 1e-19 are news.
    return rounded if value == 0.0 or float(rounded) != 0.0 else f"{value:.0e}"
