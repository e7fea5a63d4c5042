"""Sums of outer products of features, one for each class, whole or as a sketch of low rank."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hesitant.nn.gram import add_gram, mirror

SMALLEST = 1e-12  # of the largest eigenvalue of D^T A D: below, it is rounding
_NUMBERS_AT_ONCE = 2**22  # of weighted features, 32 MiB


def add_class_grams(total: Tensor, features: Tensor, weights: Tensor, scale: float) -> None:
    """Adds ``scale * sum_i w_ic phi_i phi_i^T`` to each class's part of ``total``, on and above its diagonal.

    Args:
        total: ``(C, M, M)``.
        features: ``(B, M)``, of the dtype of ``total``.
        weights: ``(B, C)``, of that dtype.
        scale: Of the products.
    """
    for of_class, weight in zip(total, weights.T, strict=True):
        add_gram(of_class, features, features * weight.unsqueeze(1), scale)


def mirror_classes(total: Tensor) -> Tensor:
    """Puts what is above the diagonal of each matrix of ``total`` ``(C, M, M)`` below it, too, and answers it."""
    for of_class in total:
        mirror(of_class)
    return total


def add_class_sketches(total: Tensor, features: Tensor, weights: Tensor, directions: Tensor, scale: float) -> None:
    """Adds ``scale * sum_i w_ic [phi_i; |phi_i|] [phi_i^T D, |phi_i|]`` of each class to ``total``.

    So ``total[:-1, c, :-1]`` is ``A_c D``, with ``A_c = sum_i w_ic phi_i phi_i^T``, and ``total[-1, c, -1]`` the trace
    of ``A_c``. What is linear in the data can be added and taken out in any order.

    Args:
        total: ``(M + 1, C, r + 1)``.
        features: ``(B, M)``, of the dtype of ``total``.
        weights: ``(B, C)``, of that dtype.
        directions: D, ``(M, r)``, of that dtype.
        scale: Of the products.
    """
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    longer = torch.cat([features, lengths], 1)  # (B, M + 1)
    sketched = torch.cat([features @ directions, lengths], 1)  # (B, r + 1)
    for begin, end in class_parts(weights.shape[1], len(features) * sketched.shape[1]):
        weighted = (weights[:, begin:end, None] * sketched[:, None]).flatten(1)  # (B, c (r + 1))
        if begin == 0 and end == weights.shape[1]:
            total.view(len(total), -1).addmm_(longer.T, weighted, alpha=scale)
        else:
            total[:, begin:end] += (scale * (longer.T @ weighted)).view(len(total), end - begin, -1)


def class_matrices(total: Tensor, directions: Tensor) -> Tensor:
    """Answers the approximation ``Y (D^T Y)^+ Y^T`` of ``A_c`` that sketches ``Y = A_c D`` give, ``(C, M, M)``."""
    images = total[:-1, :, :-1].movedim(1, 0)
    within = directions.T @ images
    return images @ torch.linalg.pinv((within + within.mT) / 2, rtol=SMALLEST, hermitian=True) @ images.mT


def class_parts(num_classes: int, numbers: int) -> Iterator[tuple[int, int]]:
    """Gives begin and end of some classes at a time, of which each takes so many numbers."""
    width = max(1, _NUMBERS_AT_ONCE // max(1, numbers))
    for begin in range(0, num_classes, width):
        yield begin, min(begin + width, num_classes)
