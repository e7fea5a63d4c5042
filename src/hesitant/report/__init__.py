"""One self-contained HTML page of a comparison: which method to use, what it promises, and where it fails."""

from hesitant.report.page import report

__all__ = ["report"]
