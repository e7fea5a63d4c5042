"""A saved model as an MLflow model of the flavour ``python_function``: ``load_model(...).predict``, ``spark_udf``.

The folder is the model's data and a :class:`~hesitant.Scorer` its code; no pickle is written or read. MLflow itself
imports what a model's ``MLmodel`` file names, so load models of those alone whom you trust.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import hesitant
from hesitant.integrations.scorer import Scorer

if TYPE_CHECKING:
    import pandas

__all__ = ["ScoredModel", "pyfunc_arguments"]


class ScoredModel:
    """What MLflow makes of a model's folder and asks: a scorer whose answers are a frame.

    Args:
        scorer: Which answers.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> "pandas.DataFrame":
        """Answers a frame with a row for each row of a frame, or of a dict of arrays; ``probs`` are a list a row.

        Raises:
            BadRows: A row is no input.
            TypeError: The input has no columns.
            ValueError: ``params`` are given, of which there are none, or a column is missing.
        """
        import pandas

        if params:
            raise ValueError(f"params={params!r}: there are none. What is answered was said when the model was logged.")
        answers = self.scorer(model_input)
        index = getattr(model_input, "index", None)
        columns = {name: list(column) if column.ndim > 1 else column for name, column in answers.items()}
        return pandas.DataFrame(columns, index=index)


def pyfunc_arguments(folder: str | Path, **options: Any) -> dict[str, Any]:
    """Answers the arguments with which ``mlflow.pyfunc.log_model`` and ``save_model`` take a saved model.

    ``mlflow.pyfunc.log_model(name="digits", **pyfunc_arguments(folder, inputs="pixels"))``; a signature, an input
    example or a name in the registry are given beside them, as of any other model. The requirements that a model is
    logged with are the versions of hesitant, torch, NumPy and safetensors that are here; put another list in their
    place with ``pip_requirements``.

    Args:
        folder: What ``model.save_pretrained(folder)`` wrote; MLflow copies it.
        options: Of :class:`~hesitant.Scorer`, but for ``model``: they are written as YAML.

    Raises:
        FileNotFoundError: There is no such folder.
        TypeError: An option is unknown, or cannot be written.
        ValueError: An option is out of its range.
    """
    if options.get("model") is not None:
        raise TypeError(
            "model: a network cannot be written into an MLflow model without pickle. Save the folder so that it tells"
            " how the network is built: model.save_pretrained(folder, architecture=...)."
        )
    Scorer(folder, **options)  # what is wrong is said now
    return {
        "loader_module": __name__,
        "data_path": str(Path(folder).absolute()),
        "model_config": {name: _plain(value) for name, value in options.items()},
        "pip_requirements": [
            f"hesitant[hub,mlflow]=={hesitant.__version__}",
            f"torch=={torch.__version__.split('+')[0]}",
            f"numpy=={np.__version__}",
        ],
    }


def _plain(value: Any) -> Any:
    """Answers an option as YAML has it."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, torch.device):
        return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(
        f"{value!r} cannot be written into an MLflow model: expected numbers and texts, in lists and dicts."
    )


def _load_pyfunc(data_path: str, model_config: dict[str, Any] | None = None) -> ScoredModel:
    """Answers the model that is in a folder; MLflow calls it."""
    return ScoredModel(Scorer(data_path, **(model_config or {})))
