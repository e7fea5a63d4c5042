"""The covariance as sums over data that no single machine need hold: added up, merged, taken apart, sent as bytes."""

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hesitant.inputs import Batch, batches, several_workers
from hesitant.methods.gaussian_head.classifier import laplace_prefix
from hesitant.methods.gaussian_head.features import features_that_count
from hesitant.methods.gaussian_head.fitted_weights import FittedWeights
from hesitant.methods.gaussian_head.neighbors import absorb_all_workers, recalled
from hesitant.methods.gaussian_head.summed_weights import SummedWeights
from hesitant.methods.gaussian_head.sums_as_bytes import SumsContent, read_sums, written_sums
from hesitant.methods.replica import in_eval_mode
from hesitant.methods.wrapper import device_of
from hesitant.nn import CovarianceError, NearestNeighbors, RandomFeatureGaussianProcess, UniformSample, bit_sum

_GONE = 1e-6  # of what was taken out: what rounding leaves of sums of nothing


def require_exact(gp: RandomFeatureGaussianProcess) -> None:
    """Raises CovarianceError where the covariance is kept while training."""
    if gp.laplace.momentum is not None:
        raise CovarianceError(
            f"with momentum={gp.laplace.momentum} the covariance is kept while training, and no exact pass makes it."
            " Make the model with momentum=None for one."
        )


class OwnerOfSums(Protocol):
    """What an SNGP is to its sums."""

    model: nn.Module
    classifier_name: str
    neighbors: NearestNeighbors | None
    fitted_weights: FittedWeights

    @property
    def gp(self) -> RandomFeatureGaussianProcess:
        """The Gaussian process that stands where the classifier was."""


class CovarianceSums:
    r"""Answers the covariance of data that no machine holds whole: ``sum_i w_i phi_i phi_i^T``, wherever it is summed.

    The sums are float64, and the same in any order and split but for its rounding; whoever brings the parts together
    (an engine's reduce, a loop over files, days of a window) gets what :meth:`~hesitant.SNGP.fit_covariance` would have
    made of all the data. ``update`` and ``downdate`` add and take out data, ``merge`` and ``unmerge`` other sums,
    ``finish`` makes the model's covariance of them, as often as wanted.

    Sums belong to the weights and the options of the model that they were made with, which must not move meanwhile:
    call :meth:`~hesitant.SNGP.prepare_covariance` once, send the model around, and make sums with it. To merge, or to
    finish, sums of other weights or options is an error that names them. Copied, pickled, and as bytes, they go without
    their model: ``CovarianceSums(model).merge(sums)`` gives them one again.

    Features are the model's own, in its dtype: those of a float32 model change by its rounding (about 1e-7) with the
    size of the batch that they are computed in.

    Example:
        >>> import torch
        >>> from hesitant import SNGP, CovarianceSums
        >>> from torch import nn
        >>> x = torch.randn(100, 2)
        >>> model = SNGP(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)))
        >>> model.prepare_covariance(x[:50])  # after training, once
        >>> parts = [CovarianceSums(model).update(shard).to_bytes() for shard in x.split(30)]  # anywhere
        >>> sums = CovarianceSums(model)
        >>> for part in parts:
        ...     sums = sums.merge(CovarianceSums.from_bytes(part))
        >>> sums.finish()
        >>> sums.count, model.covariance_state
        (100, 'fitted')

    Args:
        model: An SNGP; its weights stay as they are.
        seed: Of the sample of training features that ``ood_score="knn"`` keeps. None takes one from the first features,
            so that sums over different data draw differently.

    Raises:
        CovarianceError: The model keeps a running covariance (``momentum``).
        TypeError: The model is no SNGP.
    """

    def __init__(self, model: OwnerOfSums, *, seed: int | None = None) -> None:
        gp = getattr(model, "gp", None)
        if not isinstance(gp, RandomFeatureGaussianProcess):
            raise TypeError(f"model is a {type(model).__name__}: expected a hesitant.SNGP, whose covariance this is.")
        require_exact(gp)
        self._owner: OwnerOfSums | None = model
        self._seed = seed
        self._weights = SummedWeights.of(
            model.model, laplace_prefix(model.model, model.classifier_name), gp, model.neighbors
        )
        self._total: Tensor = torch.zeros_like(gp.laplace.data_precision)
        self._count = 0
        self._sample: UniformSample | None = None
        self._is_whole = True

    @classmethod
    def fitted(cls, model: OwnerOfSums, *, seed: int | None = None) -> "CovarianceSums":
        """Answers the sums that a model's fitted covariance is made of: to add to them, or to take out.

        Args:
            model: An SNGP.
            seed: With ``ood_score="knn"``, of the keys of the features that the model keeps, which are drawn again.

        Raises:
            CovarianceError: The covariance is not fitted, or stale, or a running one.
            TypeError: The model is no SNGP.
        """
        sums = cls(model, seed=seed)
        model.fitted_weights.settle(model.model, model.gp.laplace, laplace_prefix(model.model, model.classifier_name))
        model.gp.laplace.require_fitted("CovarianceSums.fitted")
        sums._weights.take()
        sums._total = model.gp.laplace.data_precision.clone()
        sums._count = int(model.gp.laplace.num_seen)
        if model.neighbors is not None and sums._count:
            sums._sample = recalled(model.neighbors, sums._count, 0 if seed is None else seed)
        return sums

    @classmethod
    def from_bytes(cls, content: bytes) -> "CovarianceSums":
        """Answers the sums that :meth:`to_bytes` wrote, without a model. Nothing in the bytes is executed.

        Raises:
            ValueError: They are no such bytes, or damaged.
        """
        read = read_sums(content)
        sums = cls.__new__(cls)
        sums._owner, sums._seed, sums._is_whole = None, None, True
        sums._weights, sums._total, sums._count, sums._sample = read.weights, read.total, read.count, read.sample
        return sums

    def to_bytes(self) -> bytes:
        """Answers the sums as bytes, in the form of an uncompressed ``.npz``: ``4 M (M + 1)`` bytes and few more.

        Of sums of each class so many a class, or ``8 (M + 1) (r + 1)`` a class with ``covariance_rank=r``.

        Raises:
            CovarianceError: An update has failed half-way.
        """
        self._require_whole()
        return written_sums(SumsContent(self._weights, self._total, self._count, self._sample))

    @property
    def count(self) -> int:
        """How many inputs are in the sums (of a sequence, each position that counts is one)."""
        return self._count

    def update(self, data: Any, *, batch_size: int | None = None) -> "CovarianceSums":
        """Adds data, and answers the sums themselves. Nobody's share is taken of it, in no distributed run.

        Args:
            data: As for :meth:`~hesitant.SNGP.fit_covariance`.
            batch_size: Inputs in one forward pass, where the data has no batches of its own.

        Raises:
            CovarianceError: The weights have moved since the sums were begun, or the sums have no model.
            ValueError: The data is empty or holds NaN or Inf. Had batches before that been added, the sums are of no
                use any more, and say so.
        """
        self.add(batches(data, batch_size))
        return self

    def downdate(self, data: Any, *, batch_size: int | None = None) -> "CovarianceSums":
        """Takes data out that was added before, and answers the sums themselves.

        With ``ood_score="knn"``, features that the sample holds of it leave it, and others do not come back.

        Raises:
            CovarianceError: As :meth:`update`, or the sums hold fewer inputs.
            ValueError: As :meth:`update`.
        """
        self.add(batches(data, batch_size), sign=-1)
        return self

    def merge(self, other: "CovarianceSums") -> "CovarianceSums":
        """Adds other sums, which stay as they are, and answers the sums themselves.

        Raises:
            CovarianceError: The other's belong to other weights or options.
        """
        self._require_alike(other)
        self._total += other._total.to(self._total.device)
        self._count += other._count
        if other._sample is not None:
            if self._sample is None:
                self._sample = UniformSample(other._sample.limit, self._sample_seed(0))
            self._sample.absorb(other._sample)
        return self

    def unmerge(self, other: "CovarianceSums") -> "CovarianceSums":
        """Takes out other sums that were merged before, and answers the sums themselves: a window goes on.

        Raises:
            CovarianceError: The other's belong to other weights or options, or hold more inputs.
        """
        self._require_alike(other)
        self._require_as_many(other._count)
        largest = self._largest() if other._count == self._count else 0.0
        self._total -= other._total.to(self._total.device)
        self._count -= other._count
        self._settle_nothing(largest)
        if self._sample is not None and other._sample is not None:
            self._sample.part_with(other._sample)
        return self

    def all_reduce(self) -> "CovarianceSums":
        """Adds up those of all workers of a ``torch.distributed`` run, who all call this and all have the same then.

        Raises:
            CovarianceError: They belong to different weights or options.
        """
        if several_workers():
            device = self._total.device
            told: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(told, (self._weights.identity(), self._is_whole))
            for identity, is_whole in told:
                self._weights.require_identity(identity)
                self._require_whole(is_whole)
            count = torch.tensor(float(self._count), dtype=torch.float64, device=device)
            dist.all_reduce(self._total)
            dist.all_reduce(count)
            self._count = int(count)
            self._sample = absorb_all_workers(self._weights.neighbors_kept, self._sample, device)
        return self

    def stand_for(self, each: float) -> None:
        """Lets what was added stand for so many times as many inputs, of which it is a uniform sample."""
        if each != 1:
            self._total *= each
            self._count = round(self._count * each)

    def finish(self) -> None:
        """Makes the model's covariance of the sums, which stay as they are and may go on.

        Raises:
            CovarianceError: The weights have moved since the sums were begun, the sums have no model, or more was taken
                out of them than was added. The covariance is what it was.
            ValueError: They are sums of nothing.
        """
        owner = self._require_owner("finish")
        self._require_whole()
        if self._count == 0:
            raise ValueError("data holds no batch that reached the classifier: expected at least one input.")
        self._weights.require_unmoved()
        owner.gp.replace_covariance(self._total, self._count)
        if owner.neighbors is not None and self._sample is not None:
            owner.neighbors.replace(self._sample.kept()[0])
        owner.fitted_weights.note(owner.model, laplace_prefix(owner.model, owner.classifier_name))

    @torch.no_grad()
    def add(self, given: Iterable[Batch], sign: Literal[1, -1] = 1) -> None:
        """Adds batches, or takes them out, for who has them already."""
        owner = self._require_owner("update" if sign > 0 else "downdate")
        self._require_whole()
        gp, model, device = owner.gp, in_eval_mode(owner.model), device_of(owner.model)
        self._require_decided(gp)
        untouched = True
        for features in features_that_count(model, (batch.to(device) for batch in given)):
            gp.decide_kernel_scale(features)  # else the weights would be looked at before it
            self._weights.require_unmoved()
            count = features[..., 0].numel()
            if sign < 0:
                self._require_as_many(count)
            largest = self._largest() if sign < 0 and count == self._count else 0.0
            self._is_whole = False
            try:
                self._count += sign * gp.add_contribution(self._total, features, sign=sign)
            except ValueError:  # it says that nothing was added
                self._is_whole = untouched
                raise
            untouched = False
            self._settle_nothing(largest)
            if owner.neighbors is not None:
                self._keep(features.flatten(0, -2).float(), owner.neighbors, sign)
        self._is_whole = True

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return CovarianceSums.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        return f"CovarianceSums(count={self._count}, {self._weights})"

    # ---------------------------------------------------------------- inside

    def _keep(self, features: Tensor, neighbors: NearestNeighbors, sign: Literal[1, -1]) -> None:
        if sign < 0:
            if self._sample is not None:
                self._sample.discard(features)
            return
        if self._sample is None:
            self._sample = neighbors.sample(self._sample_seed(int(bit_sum(features))))
        self._sample.add(features)

    def _sample_seed(self, from_data: int) -> int:
        return from_data & (2**63 - 1) if self._seed is None else self._seed

    def _largest(self) -> float:
        return float(self._total.abs().max())

    def _settle_nothing(self, largest: float) -> None:
        if self._count == 0 and self._largest() <= _GONE * largest:
            self._total.zero_()  # what rounding left behind may be more than a small ridge

    def _require_owner(self, what: str) -> OwnerOfSums:
        if self._owner is None:
            raise CovarianceError(
                f"{what}: these sums come from bytes or from another process and have no model. Call"
                " CovarianceSums(model).merge(sums) and go on with what it answers."
            )
        return self._owner

    def _require_decided(self, gp: RandomFeatureGaussianProcess) -> None:
        if several_workers() and not gp.scale.is_decided():
            raise CovarianceError(
                "update: the kernel scale is not decided, and workers would decide it each by its own data. Call"
                " prepare_covariance(data) on all of them first."
            )

    def _require_whole(self, is_whole: bool | None = None) -> None:
        if not (self._is_whole if is_whole is None else is_whole):
            raise CovarianceError(
                "an update of these sums has failed after a part of its data was added: nobody can tell which. Begin"
                " again with CovarianceSums(model), or give update() one batch at a time."
            )

    def _require_alike(self, other: "CovarianceSums") -> None:
        if not isinstance(other, CovarianceSums):
            raise TypeError(f"other is a {type(other).__name__}: expected CovarianceSums; from_bytes reads bytes.")
        self._require_whole()
        other._require_whole()
        self._weights.require_identity(other._weights.identity())

    def _require_as_many(self, count: int) -> None:
        if count > self._count:
            raise CovarianceError(f"{count} inputs cannot be taken out of the {self._count} that were added.")
