"""The tables of docs/figures.md, in Markdown, from what the benchmarks on real data measured."""

from collections.abc import Mapping
from typing import Any

from _real_data import RISKS


def tables(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Answers the tables of some studies in Markdown, median [min, max] over the seeds.

    Args:
        results: what `measure` wrote.
        titles: of each study and each out-of-domain set, what it is called.
    """
    lines: list[str] = []
    for name, table in results.items():
        rows: dict[str, Any] = table["rows"]
        found = [row["summary"] for row in rows.values()]
        sets = [key.removeprefix("auroc.") for key in found[0] if key.startswith("auroc.")]
        columns = {"accuracy": ("accuracy", 4), "nll": ("NLL", 3), "ece": ("ECE", 4), "aurc": ("AURC", 4)}
        for each in sets:
            columns |= {
                f"{key}.{each}": (f"{heading}, {titles[each]}", 3)
                for key, heading in (("auroc", "AUROC"), ("aupr", "AUPR"), ("fpr95", "FPR95"))
            }
        lines += [*_table(titles[name], rows, columns), ""]
        columns = {}
        for risk in RISKS:
            columns[f"coverage.{risk}"] = f"answered at {risk:.0%} risk", 3
            columns |= {f"handed_over.{risk}.{each}": (f"{titles[each]} handed over", 3) for each in sets}
        columns |= {"training_seconds": ("training, s", 1), "milliseconds": ("ms an input", 3), "ratio": ("ratio", 2)}
        lines += [*_table(f"{titles[name]}, deferral and cost", rows, columns), ""]
        strengths = sorted(
            {key.removeprefix("nll.strength") for row in found for key in row if key.startswith("nll.strength")}
        )
        if strengths:
            headings = {"accuracy": ("accuracy", 3), "nll": ("NLL", 2), "ece": ("ECE", 3)}
            columns = {
                f"{key}.strength{each}": (f"{heading}, {each}", digits)
                for key, (heading, digits) in headings.items()
                for each in strengths
            }
            of_some = {key: row for key, row in rows.items() if columns.keys() & row["summary"].keys()}
            lines += [*_table(f"{titles[name]}, 15 corruptions by strength", of_some, columns), ""]
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, Any], columns: Mapping[str, tuple[str, int]]) -> list[str]:
    lines = [f"| {title} | seeds | {' | '.join(heading for heading, _ in columns.values())} |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for row in rows.values():
        cells = [_cell(row["summary"].get(key), digits) for key, (_, digits) in columns.items()]
        lines.append(f"| {row['title']} | {len(row['seeds'])} | {' | '.join(cells)} |")
    return lines


def _cell(figure: Mapping[str, float] | None, digits: int) -> str:
    if figure is None:
        return "none"
    median, low, high = (_decimals(figure[key], digits) for key in ("median", "min", "max"))
    return median if low == high else f"{median} [{low}, {high}]"


def _decimals(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if digits else text
