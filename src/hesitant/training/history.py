"""How a training run went."""

from dataclasses import dataclass


@dataclass(frozen=True)
class History:
    """How a training run went: a number for each epoch, and the seconds it took.

    Attributes:
        train_loss: The mean loss of each epoch.
        validation_nll: The negative log-likelihood of the validation data after each epoch; empty without such data.
        best_epoch: That of the lowest validation NLL, counted from 1; None without validation data.
        seconds: What all epochs took, a run resumed from a checkpoint included, and SNGP's covariance.
    """

    train_loss: list[float]
    validation_nll: list[float]
    best_epoch: int | None
    seconds: float


@dataclass(frozen=True)
class EnsembleHistory(History):
    """How the training of an ensemble went: the means over the members that were still training in an epoch.

    Attributes:
        best_epoch: Of the lowest mean validation NLL; with ``patience`` each member goes back to its own best.
        members: How each member's training went; ``seconds`` are of all where they trained together.
        one_by_one: Why the members were trained one after another; None says that they were trained in one pass.
    """

    members: tuple[History, ...] = ()
    one_by_one: str | None = None


def merged(histories: list[History], why: str | None, seconds: float) -> EnsembleHistory:
    """Answers the histories of all members as one."""
    losses = _means([history.train_loss for history in histories])
    nlls = _means([history.validation_nll for history in histories])
    best = max(epoch for epoch, nll in enumerate(nlls, start=1) if nll == min(nlls)) if nlls else None
    return EnsembleHistory(losses, nlls, best, seconds, tuple(histories), why)


def _means(numbers: list[list[float]]) -> list[float]:
    """Answers the mean of each epoch, over the members that had one."""
    columns = [[row[epoch] for row in numbers if epoch < len(row)] for epoch in range(max(map(len, numbers)))]
    return [sum(column) / len(column) for column in columns]
