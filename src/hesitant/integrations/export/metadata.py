"""What a file says of itself, as texts by name."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import hesitant
from hesitant.evaluation import DeferralPolicy
from hesitant.prediction import Prediction


def metadata_of(
    prediction: Prediction,
    method: nn.Module,
    policy: DeferralPolicy | None,
    preprocessing: Mapping[str, Any] | None,
    label_names: Sequence[str] | None,
    dropout_rates: Sequence[float],
) -> dict[str, str]:
    """Answers the metadata of a file: what is no word stands as JSON.

    Args:
        prediction: The method's, of an example.
        method: What is exported.
        policy: Within the file, if there is one: its own JSON.
        preprocessing: What is done to an input before.
        label_names: Of the classes.
        dropout_rates: Of the masks that are given.

    Raises:
        TypeError: The preprocessing is no JSON.
        ValueError: There is not one name for each class.
    """
    classes = prediction.probs.shape[1]
    if label_names is not None and len(label_names) != classes:
        raise ValueError(f"label_names are {len(label_names)}: expected {classes}, one for each class.")
    found = {
        "hesitant_version": hesitant.__version__,
        "method": type(method).__name__,
        "calibration": str(prediction.calibration),
        "uncertainty": "ood_score",
    }
    if preprocessing is not None:
        try:
            found["preprocessing"] = json.dumps(dict(preprocessing))
        except (TypeError, ValueError) as error:
            raise TypeError(f"preprocessing cannot be kept as JSON ({error}): give texts, numbers, lists.") from error
    if label_names is not None:
        found["label_names"] = json.dumps([str(name) for name in label_names])
    if dropout_rates:
        found["dropout_rates"] = json.dumps(list(dropout_rates))
    if policy is not None:
        found["policy"] = json.dumps(policy.saved_content(), indent=2, allow_nan=False) + "\n"
    return found
