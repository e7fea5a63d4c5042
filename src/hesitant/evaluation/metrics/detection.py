"""How well a score tells out-of-domain inputs, the positive class, from in-domain ones."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesitant.evaluation.metrics.arguments import as_scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["aupr", "auroc", "fpr95"]


def auroc(in_domain_scores: "Tensor | ArrayLike", ood_scores: "Tensor | ArrayLike") -> float:
    """The probability that an out-of-domain input scores above an in-domain one, in [0, 1]; a tie counts one half.

    Area under the ROC curve with out-of-domain as the positive class: 1 separates perfectly, 1/2 is chance. A score is
    higher the less in-domain the input looks: any that `uncertainty` answers.

    Args:
        in_domain_scores: `(N,)` numbers, `N >= 1`; infinite ones are allowed.
        ood_scores: `(K,)` numbers, `K >= 1`.

    Raises:
        TypeError: the scores are not numbers.
        ValueError: the scores are not of one dimension, there are none, or one is NaN.
    """
    return auroc_of_ranks(*ranks_of(in_domain_scores, ood_scores))


def aupr(in_domain_scores: "Tensor | ArrayLike", ood_scores: "Tensor | ArrayLike") -> float:
    """Average precision with out-of-domain as the positive class, in (0, 1]; chance is the share `K / (N + K)`.

    `sum_t (recall_t - recall_{t-1}) precision_t` over the distinct scores `t` from the highest down, with the precision
    and recall of calling out-of-domain what scores at least `t`: tied inputs are called together, and nothing is
    interpolated (as scikit-learn's average_precision_score; Davis and Goadrich 2006 say why linear interpolation is too
    good). Unlike AUROC it depends on how many of each there are: compare at equal `N` and `K` alone.

    Args:
        in_domain_scores: `(N,)` numbers, `N >= 1`, higher the less in-domain; infinite ones are allowed.
        ood_scores: `(K,)` numbers, `K >= 1`.

    Raises:
        TypeError: the scores are not numbers.
        ValueError: the scores are not of one dimension, there are none, or one is NaN.
    """
    return aupr_of_ranks(*ranks_of(in_domain_scores, ood_scores))


def fpr95(in_domain_scores: "Tensor | ArrayLike", ood_scores: "Tensor | ArrayLike") -> float:
    """The share of in-domain inputs called out-of-domain when at least 95 % of the out-of-domain ones are, in [0, 1].

    `mean_i 1[in_i >= t]` at the highest score `t` with `mean_j 1[ood_j >= t] >= .95`: tied inputs are called together,
    and nothing is interpolated. 0 is best; a constant score has 1. Some papers take in-domain as the positive class,
    which gives another number (Hendrycks et al. 2019, https://arxiv.org/abs/1812.04606, take out-of-domain, as here).

    Args:
        in_domain_scores: `(N,)` numbers, `N >= 1`, higher the less in-domain; infinite ones are allowed.
        ood_scores: `(K,)` numbers, `K >= 1`.

    Raises:
        TypeError: the scores are not numbers.
        ValueError: the scores are not of one dimension, there are none, or one is NaN.
    """
    return fpr95_of_ranks(*ranks_of(in_domain_scores, ood_scores))


def ranks_of(in_domain_scores: "Tensor | ArrayLike", ood_scores: "Tensor | ArrayLike") -> tuple[Tensor, Tensor]:
    """`(N,)` and `(K,)`: the place of each score among the distinct ones of both, the highest 0."""
    in_domain, ood = as_scores("in_domain_scores", in_domain_scores), as_scores("ood_scores", ood_scores)
    distinct, ranks = torch.unique(torch.cat([in_domain, ood]), return_inverse=True)
    ranks = len(distinct) - 1 - ranks
    return ranks[: len(in_domain)], ranks[len(in_domain) :]


def auroc_of_ranks(in_domain: Tensor, ood: Tensor) -> float:
    """`auroc` of ranks, the highest score 0."""
    false, true = _called(in_domain, ood)
    half_ties = (true[1:] + true[:-1]) / 2  # (R,), out-of-domain inputs above each rank, and half of those at it
    return ((false.diff() * half_ties).sum() / (false[-1] * true[-1])).item()


def aupr_of_ranks(in_domain: Tensor, ood: Tensor) -> float:
    """`aupr` of ranks, the highest score 0."""
    false, true = _called(in_domain, ood)
    precision = true[1:] / (true[1:] + false[1:]).clamp(min=1)  # of ranks that have been resampled away: 0 of 0
    return ((true.diff() * precision).sum() / true[-1]).item()


def fpr95_of_ranks(in_domain: Tensor, ood: Tensor) -> float:
    """`fpr95` of ranks, the highest score 0."""
    false, true = _called(in_domain, ood)
    enough = 20 * true >= 19 * true[-1]  # 95 % in whole numbers, which do not round
    return (false[enough][0] / false[-1]).item()


def _called(in_domain: Tensor, ood: Tensor) -> tuple[Tensor, Tensor]:
    """`(R + 1,)` in-domain and out-of-domain inputs called out-of-domain: none, then those of each rank or above."""
    num_ranks = 1 + int(torch.maximum(in_domain.max(), ood.max()))
    counts = torch.stack([torch.bincount(ranks, minlength=num_ranks) for ranks in (in_domain, ood)]).double()
    false, true = torch.nn.functional.pad(counts.cumsum(dim=1), (1, 0))
    return false, true
