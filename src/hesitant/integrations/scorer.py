"""Scores batches of columns by a saved model: one callable for Ray, Spark, MLflow, a DataLoader and a service."""

import copy
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hesitant.integrations.scoring import (
    BadInputs,
    BadRows,
    InputColumns,
    Inputs,
    Loaded,
    as_columns,
    blank,
    folder_digest,
    loaded_once,
    taken,
)
from hesitant.prediction import Prediction

__all__ = ["BadInputs", "BadRows", "Scorer"]

Array = NDArray[Any]

_ANSWERS: dict[str, Callable[[Prediction], Tensor]] = {
    "probs": lambda prediction: prediction.probs,
    "label": lambda prediction: prediction.labels,
    "confidence": lambda prediction: prediction.confidence,
    "uncertainty": lambda prediction: prediction.ood_score,
    "predictive_entropy": lambda prediction: prediction.predictive_entropy,
    "mutual_information": lambda prediction: prediction.mutual_information,
    "logit_variance": lambda prediction: prediction.logit_variance,
}
_DEFAULT = ("probs", "label", "confidence", "uncertainty")
_OUTPUTS = (*_ANSWERS, "label_name", "accept")
_ERROR = "error"  # the column that says what is wrong with a row


class Scorer:
    """Answers columns of inputs with columns of probabilities, labels, uncertainties and decisions.

    A callable ``dict[str, ndarray] -> dict[str, ndarray]`` of a folder that ``save_pretrained`` wrote. It is small to
    pickle, for it holds the folder's name and no weights; the first call in a process loads the folder, and all copies
    in the process share what was loaded, whichever thread asks. The folder's content is fixed when the scorer is made:
    a worker that finds another one at the same path raises an error, and does not score a part of the rows by another
    model.

    An answer to a row does not depend on the rows beside it, but for rounding and for the dropout masks that its place
    in the batch is given; a batch that an engine runs again is answered the same.

    Args:
        folder: What ``model.save_pretrained(folder)`` wrote; workers on other machines read it at the same path.
        inputs: The columns that the model takes. One name is its only input; several are its arguments of these names.
            Where the folder has a tokenizer, one or two columns that are no arguments of the model are texts, or pairs
            of texts; what is longer than the tokenizer allows is cut off. A mapping says the shape of one row, too,
            ``{"pixels": (3, 32, 32)}``: rows that come flat are given it, and others are bad. None takes the columns
            that are called as the model's arguments, or the only column that there is.
        outputs: The columns to answer with, of ``"probs"`` (B, C), ``"label"`` (B,) int64, ``"label_name"`` where
            classes have names, ``"confidence"``, ``"uncertainty"`` (the ``ood_score``), ``"predictive_entropy"``,
            ``"mutual_information"``, ``"logit_variance"`` (B, C) and ``"accept"`` (B,) booleans, what the folder's
            policy decides. None is the first two, confidence and uncertainty, and accept where the folder has a policy.
        keep: Columns of the batch that are answered as they came, such as the rows' identifiers.
        bad_rows: ``"raise"`` raises :class:`~hesitant.integrations.scorer.BadRows` for a row that is no input: missing,
            of another shape, not finite, no text, or refused by the model. ``"mark"`` answers it with NaN, a label of
            -1, an empty label name and no acceptance, and has a column ``"error"`` that says why, empty for the others;
            a batch whose rows the model refuses one and all still raises.
        batch_size: Rows in one forward pass; None chooses by their size.
        device: Of the model; None is the CPU.
        trust: Import paths of own classes that the folder may name (see :func:`hesitant.load`).
        model: The network, for a folder that does not say how to make it. A copy takes the folder's weights.
        predict_options: For the method's ``predict``, such as ``posterior="monte_carlo"``: those with which the policy
            of the folder was calibrated.

    Raises:
        FileNotFoundError: There is no such folder.
        TypeError: ``inputs`` are of another kind.
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        inputs: str | Sequence[str] | Mapping[str, Sequence[int] | None] | None = None,
        outputs: Sequence[str] | None = None,
        keep: Sequence[str] = (),
        bad_rows: Literal["raise", "mark"] = "raise",
        batch_size: int | None = None,
        device: str | torch.device | None = None,
        trust: str | Sequence[str] = (),
        model: nn.Module | None = None,
        **predict_options: Any,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.digest = folder_digest(self.folder)
        self.inputs = InputColumns.of(inputs)
        self.outputs = self._checked(outputs)
        self.keep = (keep,) if isinstance(keep, str) else tuple(keep)
        if bad_rows not in ("raise", "mark"):
            raise ValueError(f"bad_rows={bad_rows!r} is not known: expected 'raise' or 'mark'.")
        self.marks = bad_rows == "mark"
        doubled = sorted({*(self.outputs or _OUTPUTS), _ERROR} & {*self.keep})
        if doubled:
            raise ValueError(
                f"keep={self.keep} names {doubled[0]!r}, which an output is called, too: rename the column."
            )
        self.batch_size, self.device, self.trust = (
            batch_size,
            device,
            (trust,) if isinstance(trust, str) else tuple(trust),
        )
        self.model = model
        self.predict_options = predict_options
        # All copies of this scorer have it: the weights of the network that is given are of no account.
        self._token = None if model is None else secrets.token_hex(16)
        self._loaded: Loaded | None = None

    def load(self) -> Loaded:
        """Loads the folder if this process has not, which the first call does otherwise.

        Raises:
            ValueError: The folder is not what it was when the scorer was made, or cannot answer with ``outputs``.
        """
        if self._loaded is None:
            key = (self.digest, self._token, str(self.device), self.trust)
            self._loaded = loaded_once(key, self._load)
            for output, missing in (("accept", "policy"), ("label_name", "label_names")):
                if output in (self.outputs or ()) and getattr(self._loaded, missing) is None:
                    raise ValueError(
                        f"outputs={self.outputs} names {output!r}, and {self.folder} holds no {missing}: save it with"
                        f" the model, model.save_pretrained(folder, {missing}=...), or leave {output!r} out."
                    )
        return self._loaded

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Answers the columns ``outputs`` and ``keep`` for a batch of rows, and ``"error"`` where bad rows are marked.

        Args:
            batch: Columns of ``B`` rows by name: arrays, tensors, series of pandas (a frame) or lists.

        Raises:
            BadRows: A row is no input; the error names the row, its column and what is wrong.
            BadInputs: A column is missing, nothing tells which columns are the inputs, or they are of several lengths.
            TypeError: The batch has no columns.
            ValueError: The folder is not what it was when the scorer was made, or cannot answer with ``outputs``.
        """
        loaded = self.load()
        columns = as_columns(batch)
        missing = [name for name in self.keep if name not in columns]
        if missing:
            raise BadInputs(f"batch has the columns {list(columns)}: expected {missing[0]!r}, which keep names.")
        num_rows = len(next(iter(columns.values())))
        kept = {name: columns[name] for name in self.keep}
        others = {name: column for name, column in columns.items() if name not in kept}
        # A column that is kept is an input all the same where it is named as one.
        names = self.inputs.chosen(columns if self.inputs.names is not None else others, loaded.arguments)
        inputs, reasons = loaded.read(self.inputs, {name: columns[name] for name in names})
        self._refuse(reasons, num_rows, kept)
        prediction, refused = self._asked(loaded, inputs, _others(reasons, num_rows))
        self._refuse(refused, num_rows, kept)
        reasons |= refused
        if prediction is None:
            prediction = self._of_no_rows(loaded, inputs, BadRows(reasons, num_rows))
        answers = self._answers(loaded, prediction)
        if reasons:
            good = _others(reasons, num_rows).numpy()
            answers = {name: _scattered(column, good, num_rows) for name, column in answers.items()}
        if self.marks:
            answers[_ERROR] = np.full(num_rows, "", dtype=object)
            for row, reason in reasons.items():
                answers[_ERROR][row] = reason
        return {**kept, **answers}

    def __getstate__(self) -> dict[str, Any]:
        """Answers what travels: no weights but those of a network that was given."""
        return {**self.__dict__, "_loaded": None}

    def __repr__(self) -> str:
        return f"Scorer({str(self.folder)!r}, outputs={self.outputs}, keep={self.keep})"

    # ---------------------------------------------------------------- inside

    def _load(self) -> Loaded:
        self._require_unchanged()
        loaded = Loaded.at(self.folder, model=copy.deepcopy(self.model), trust=self.trust, device=self.device)
        self._require_unchanged()  # nor while it was read
        return loaded

    def _require_unchanged(self) -> None:
        found = folder_digest(self.folder)
        if found != self.digest:
            raise ValueError(
                f"{self.folder} holds {found[:16]} here and now, and held {self.digest[:16]} where the scorer was made:"
                " give every process the same folder, or make the scorer anew."
            )

    def _refuse(self, reasons: dict[int, str], num_rows: int, kept: Mapping[str, Array]) -> None:
        """Raises for bad rows that are not to be marked, by the identifiers that were kept of them, too."""
        for row in reasons:
            known = ", ".join(f"{name}={column[row]!s}" for name, column in kept.items())
            reasons[row] += f" ({known})" if known else ""
        if reasons and not self.marks:
            raise BadRows(reasons, num_rows)

    def _predict(self, loaded: Loaded, inputs: Inputs) -> Prediction:
        prediction: Prediction = loaded.method.predict(inputs, batch_size=self.batch_size, **self.predict_options)
        return prediction

    def _asked(self, loaded: Loaded, inputs: Inputs, rows: Tensor) -> tuple[Prediction | None, dict[int, str]]:
        """Answers the prediction for these rows, less those that the model refuses, and why it does.

        Whatever the model finds wrong, a token that it does not know or a number so large that its logits are infinite,
        it says of the batch: halves of it are asked until it says so of a row.
        """
        if len(rows) == 0:
            return None, {}
        try:
            return self._predict(loaded, taken(inputs, rows)), {}
        except (IndexError, ValueError) as error:
            if len(rows) == 1:
                return None, {int(rows): f"row {int(rows)}: {error}"}
        half = len(rows) // 2
        found: list[Prediction] = []
        reasons: dict[int, str] = {}
        for part in (rows[:half], rows[half:]):
            prediction, refused = self._asked(loaded, inputs, part)
            found += [] if prediction is None else [prediction]
            reasons |= refused
            if reasons and not self.marks:
                break  # one is enough to raise
        return Prediction.cat(found) if found else None, reasons

    def _of_no_rows(self, loaded: Loaded, inputs: Inputs, why: BadRows) -> Prediction:
        """Answers the prediction of no rows, which knows how many classes there are.

        A row of zeros is asked about, which is what stands for one that is no input.
        """
        try:
            return self._predict(loaded, blank(inputs))[[]]
        except (IndexError, ValueError, RuntimeError) as error:
            if why.reasons:
                raise why from error
            raise BadInputs(
                "batch has no rows, and its columns do not say what one would be: say it,"
                " Scorer(..., inputs={name: shape})."
            ) from error

    def _answers(self, loaded: Loaded, prediction: Prediction) -> dict[str, Array]:
        """Answers the outputs of a prediction."""
        outputs = self.outputs or (*_DEFAULT, *(("accept",) if loaded.policy is not None else ()))

        def answer(output: str) -> Array:
            if output == "label_name":
                return np.array(loaded.label_names, dtype=object)[prediction.labels.cpu().numpy()]
            if output == "accept":
                assert loaded.policy is not None
                return loaded.policy.accept(prediction).cpu().numpy()
            return np.ascontiguousarray(_ANSWERS[output](prediction).cpu().numpy())

        return {output: answer(output) for output in outputs}

    @staticmethod
    def _checked(outputs: Sequence[str] | None) -> tuple[str, ...] | None:
        if outputs is None:
            return None
        named = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        unknown = [name for name in named if name not in _OUTPUTS]
        if unknown or not named:
            raise ValueError(f"outputs={outputs!r}: expected some of {', '.join(_OUTPUTS)}.")
        return named


def _others(rows: Mapping[int, str], of: int) -> Tensor:
    """Answers all rows but these."""
    chosen = torch.ones(of, dtype=torch.bool)
    chosen[list(rows)] = False
    return chosen.nonzero().flatten()


def _scattered(column: Array, good: Array, num_rows: int) -> Array:
    """Answers a column ``(N, ...)`` of the good rows as one of all, ``(B, ...)``."""
    blank: Any = {"f": np.nan, "i": -1, "b": False, "O": ""}[column.dtype.kind]
    scattered = np.full((num_rows, *column.shape[1:]), blank, column.dtype)
    scattered[good] = column
    return scattered
