"""The table of a comparison as text and as Markdown."""

import re
from collections.abc import Mapping, Sequence

from hesitant.evaluation.comparison.columns import Column, figure_text
from hesitant.evaluation.metrics import Estimate
from hesitant.evaluation.text import isolated, one_line

__all__ = ["as_markdown", "as_text", "cell"]

_WIDTH = 80
_GAP = "  "
_LONGEST_HEADING = 30
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|$~&#!]")  # what begins markup, mathematics of GitHub's included

Figures = Mapping[str, Mapping[str, float | int | None]]
Estimates = Mapping[str, Mapping[str, Estimate]]
Best = Mapping[str, tuple[str, ...]]


def cell(column: Column, name: str, figures: Figures, estimates: Estimates) -> str:
    """A method's figure as it is written: `.9781`, or `.978 ± .002` where its standard error is known."""
    estimate = estimates[name].get(column.key)
    return figure_text(figures[name][column.key], column) if estimate is None else str(estimate)


def as_text(columns: Sequence[Column], figures: Figures, estimates: Estimates, best: Best) -> str:
    """The table as lines of aligned text, a column a method; `*` follows a marked figure.

    Methods that do not fit into 80 characters beside the others come in a further block below.
    """
    headings = [_shortened(one_line(column.heading)) for column in columns]
    first = max(len(heading) for heading in headings)
    rendered = []
    for name in figures:
        marks = ["*" if name in best.get(column.key, ()) else " " for column in columns]
        cells = [cell(column, name, figures, estimates) + mark for column, mark in zip(columns, marks, strict=True)]
        heading = f"{one_line(name)} "
        width = max(map(len, (heading, *cells)))
        rendered.append([text.rjust(width) for text in (heading, *cells)])
    blocks: list[list[list[str]]] = [[]]
    used = first
    for lines in rendered:
        needed = len(_GAP) + len(lines[0])
        if blocks[-1] and used + needed > _WIDTH:
            blocks.append([])
            used = first
        blocks[-1].append(lines)
        used += needed
    return "\n\n".join(
        "\n".join(
            _GAP.join(row).rstrip() for row in zip([text.ljust(first) for text in ("", *headings)], *block, strict=True)
        )
        for block in blocks
    )


def as_markdown(columns: Sequence[Column], figures: Figures, estimates: Estimates, best: Best) -> str:
    """The table in Markdown, a column a method; a marked figure is bold. Names are text, whatever is in them."""
    lines = [["", *map(_escaped, figures)], ["---", *["---:"] * len(figures)]]
    for column in columns:
        cells = []
        for name in figures:
            text = cell(column, name, figures, estimates)
            cells.append(f"**{text}**" if name in best.get(column.key, ()) else text)
        lines.append([_escaped(column.heading), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\g<0>", isolated(text))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_HEADING else f"{text[: _LONGEST_HEADING - 1]}…"
