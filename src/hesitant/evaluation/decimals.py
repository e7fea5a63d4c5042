"""Numbers as papers print them."""

__all__ = ["decimals"]


def decimals(number: float, places: int) -> str:
    """The number with so many decimals, thousands set apart, without a zero before the point: 0.958 is `.958`."""
    text = f"{number:,.{places}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
