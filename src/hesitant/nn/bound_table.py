"""A table of the layers that are bounded, and of those that are not."""

from typing import NamedTuple


class LayerBound(NamedTuple):
    """One layer's line.

    Attributes:
        layer: Its name, or that of a parameter which is not bounded.
        sigma: Its operator norm; None where it is not known.
        bound: The largest norm that it may have; None where there is none, or it is not known yet.
        note: Why it is not bounded, or not yet; empty where it is.
    """

    layer: str
    sigma: float | None
    bound: float | None
    note: str = ""


class BoundTable(tuple[LayerBound, ...]):
    """The lines of all layers; printed, it is a table."""

    def __repr__(self) -> str:
        """Answers the table as text."""
        if not self:
            return "no layer is bounded"
        width = max(len("layer"), *(len(line.layer) for line in self))
        lines = [f"{'layer':{width}}  {'sigma':>7}  {'bound':>7}"]
        for name, sigma, bound, note in self:
            lines.append(f"{name:{width}}  {_number(sigma)}  {_number(bound)}  {note}".rstrip())
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.3g'):>7}"
