"""Digits: scikit-learn's 1,797 scans of handwritten digits, with 8 and 9 held out as out-of-domain."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

NUM_CLASSES = 8
TRAIN_SHARE = 0.75
# A pixel counts the dark points in a block of 4 x 4.
DARKEST = 16


class Digits(NamedTuple):
    """The scans of 0 to 7, parted for training and testing, and those of 8 and 9. An input is an 8 x 8 scan in rows.

    Attributes:
        train: inputs `(1082, 64)`, float32 in [0, 1], and their targets 0 to 7, int64.
        test: the other 361 scans of 0 to 7.
        ood: inputs `(354, 64)` of digits that no class stands for, 8 and 9.
    """

    train: TensorDataset
    test: TensorDataset
    ood: Tensor


def digits(*, generator: torch.Generator) -> Digits:
    """Answers with the scanned digits: three quarters of 0 to 7 to train on, a quarter to test, 8 and 9 out-of-domain.

    The scans come with scikit-learn: nothing is downloaded. Source: Alpaydin and Kaynak 1998, "Optical Recognition of
    Handwritten Digits", UCI Machine Learning Repository.

    Args:
        generator: parts the scans; a generator of the same seed parts them alike.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits() reads the scans that come with scikit-learn: pip install 'hesitant[data]'."
        ) from error
    pixels, names = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels).float() / DARKEST  # (1797, 64)
    targets = torch.from_numpy(names).long()
    in_domain = targets < NUM_CLASSES
    ood = inputs[~in_domain]
    inputs, targets = inputs[in_domain], targets[in_domain]
    # Drawn where the generator is, since torch asks for that; the scans stay on the CPU, as a data set does.
    order = torch.randperm(len(inputs), generator=generator, device=generator.device).cpu()
    train, test = order.tensor_split([int(TRAIN_SHARE * len(inputs))])
    return Digits(TensorDataset(inputs[train], targets[train]), TensorDataset(inputs[test], targets[test]), ood)
