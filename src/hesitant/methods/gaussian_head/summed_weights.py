"""What sums over data belong to: the weights, to the bit, and the options that features are made with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hesitant.methods.gaussian_head.fingerprint import fingerprint
from hesitant.nn import CovarianceError, NearestNeighbors, RandomFeatureGaussianProcess, WeightWatch

Identity = tuple[Mapping[str, Any], int | None]  # the options; the weights, None of sums over nothing


@dataclass(eq=False)
class SummedWeights:
    """The weights that sums were made with, known by their fingerprint from the first data on.

    Attributes:
        options: Of the Gaussian process, as far as its sums depend on them.
        fingerprint: Of the model's weights; None before it is taken.
        gp: The Gaussian process; None of sums that have no model.
        model: Whose weights they are; None of sums that have none.
        without: Prefix of the covariance's own buffers.
    """

    options: Mapping[str, Any]
    fingerprint: int | None = None
    gp: RandomFeatureGaussianProcess | None = None
    model: nn.Module | None = None
    without: str = ""
    watch: WeightWatch = field(default_factory=WeightWatch)

    @staticmethod
    def of(
        model: nn.Module, without: str, gp: RandomFeatureGaussianProcess, neighbors: NearestNeighbors | None
    ) -> "SummedWeights":
        """Answers those of a model, not looked at yet: the first data may decide its kernel scale."""
        options = {
            **gp.options_of_sums(),
            "activation": getattr(gp.activation, "__name__", type(gp.activation).__name__),
            "neighbors": None if neighbors is None else neighbors.max_inputs,
        }
        return SummedWeights(options, None, gp, model, without)

    @property
    def neighbors_kept(self) -> int | None:
        """How many training features are kept, if any are."""
        return self.options["neighbors"]

    def take(self) -> None:
        """Takes the weights as they are for those of the sums."""
        if self.model is not None:
            self.watch.trusts(self.model, self.without)
            self.fingerprint = fingerprint(self.model, self.without)

    def identity(self) -> Identity:
        """Answers what tells these weights and options from others."""
        return self.options, self.fingerprint

    def require_unmoved(self) -> None:
        """Raises CovarianceError where the model's weights are no longer those of the sums."""
        if self.model is None or self.gp is None:
            return
        if not self.gp.laplace.options_of_sums().items() <= self.options.items():
            raise CovarianceError(
                "the directions of covariance_rank have been chosen anew since these sums were begun. Begin again with"
                " CovarianceSums(model), over all the data."
            )
        if self.fingerprint is None:
            self.take()
        elif self.watch.suspects(self.model, self.without):
            self.watch.trusts(self.model, self.without)  # first: what moves meanwhile is suspected again
            if fingerprint(self.model, self.without) != self.fingerprint:
                self.watch.raise_suspicion()
                raise CovarianceError(
                    "the model's weights have moved since these sums were begun, and sums over different weights do"
                    " not add up. Begin again with CovarianceSums(model), over all the data."
                )

    def require_identity(self, other: Identity) -> None:
        """Takes on the weights of others where it has none; raises CovarianceError where they differ."""
        options, weights = other
        for name in dict.fromkeys([*self.options, *options]):
            mine, theirs = self.options.get(name), options.get(name)
            if mine != theirs:
                raise CovarianceError(
                    f"these sums were made with {name}={mine!r} and the others with {name}={theirs!r}: they do not add"
                    " up. Make all of them with one model."
                )
        if weights is None:
            return
        if self.fingerprint is None:
            self.take()
            self.fingerprint = weights if self.fingerprint is None else self.fingerprint
        if self.fingerprint != weights:
            raise CovarianceError(
                "these sums and the others belong to different weights (a model trained further, another one, another"
                " dtype, or a kernel scale that each decided by its own data): they do not add up. Call"
                " prepare_covariance(data) once, send that model to all, and make the sums with it."
            )

    def __str__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
