"""How far a training run has come."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["Progress"]


@dataclass
class Progress:
    """How far a training run has come."""

    epoch: int = 0
    train_loss: list[float] = field(default_factory=list)
    validation_nll: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    seconds: float = 0.0

    def has_waited(self, patience: int) -> bool:
        """Answers whether the validation NLL has not improved for ``patience`` epochs."""
        return self.epoch - (self.best_epoch or 0) >= patience

    @classmethod
    def read(cls, content: Any) -> "Progress":
        """The progress that a file says a run has made.

        Args:
            content: A dict of all attributes.

        Raises:
            ValueError: An attribute is missing or unknown, or no run can have come there; the error names it.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"its progress has {found}, expected {sorted(names)}")
        epoch, losses, nlls = content["epoch"], content["train_loss"], content["validation_nll"]
        best, seconds = content["best_epoch"], content["seconds"]
        _require(_is_count(epoch), "epoch", epoch, "a number of epochs")
        losses_fit = isinstance(losses, list) and len(losses) == epoch
        _require(losses_fit and all(map(_is_real, losses)), "train_loss", losses, f"{epoch} finite numbers")
        nlls_fit = isinstance(nlls, list) and len(nlls) <= epoch
        # Where a probability is 0, an NLL is infinite.
        _require(
            nlls_fit and all(_is_real(nll) or nll == math.inf for nll in nlls),
            "validation_nll",
            nlls,
            f"at most {epoch} numbers",
        )
        _require(best is None or (_is_count(best) and 1 <= best <= epoch), "best_epoch", best, f"null, or 1 to {epoch}")
        _require(_is_real(seconds) and seconds >= 0, "seconds", seconds, "a time of at least 0")
        return cls(**content)


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        text = repr(value)
        raise ValueError(f"{name} of its progress is {text if len(text) <= 80 else text[:80] + ' …'}, not {expected}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_real(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)
