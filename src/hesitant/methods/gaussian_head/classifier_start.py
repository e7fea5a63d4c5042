"""The start of a Gaussian process from the classifier that it replaced: its output weights by least squares."""

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from hesitant.inputs import Batch, as_batch, as_targets, several_workers, training_loader
from hesitant.methods.gaussian_head.features import features_that_count, repeating
from hesitant.methods.gaussian_head.workers import together
from hesitant.methods.outputs import Outputs, log_probs_of, logits_of
from hesitant.methods.replica import in_eval_mode
from hesitant.methods.wrapper import device_of
from hesitant.nn import RandomFeatureGaussianProcess, recorded

_RIDGE = 0.01  # of the features' mean square norm
_JUDGING = 512  # inputs by which a classifier is judged
_INPUTS_A_FEATURE = 4  # beyond, the error no longer falls


class ReplacedClassifier:
    """The Linear in whose place a Gaussian process stands.

    Args:
        linear: It is copied.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self._linear: nn.Linear | None = copy.deepcopy(linear)

    def tensors(self, gp: RandomFeatureGaussianProcess) -> dict[str, Tensor]:
        """Answers the Linear's weight and bias, as long as the Gaussian process may start from it."""
        if self._linear is None or not gp.is_as_drawn():
            return {}
        return {name: tensor.detach() for name, tensor in self._linear.named_parameters()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`tensors` answered for that of its Linear: none, and there is nothing to start from."""
        if self._linear is not None and tensors:
            linear = nn.Linear(
                self._linear.in_features, self._linear.out_features, bias="bias" in tensors, device="meta"
            )
            linear.load_state_dict(tensors, assign=True)
            self._linear = linear
        else:
            self._linear = None

    @torch.no_grad()
    def start(
        self,
        model: nn.Module,
        gp: RandomFeatureGaussianProcess,
        data: Any,
        outputs: Outputs,
        batch_size: int | None,
        seed: int,
    ) -> bool:
        """Lets a Gaussian process that is as it was drawn answer what the classifier would, if that knows something.

        Its output weights are the ridge regression of the classifier's logits on the random features of up to ``4 M``
        training inputs, in random order: ``w = (sum_i phi_i phi_i^T + r I)^-1 sum_i phi_i (W x_i + b)^T``, with r a
        hundredth of the mean ``|phi_i|^2``. Where the data has targets, the classifier must be better on 512 of them
        than the uniform distribution: one that was drawn at random is forgotten.

        Returns:
            Whether it was as it was drawn, and now answers so.
        """
        # What can be gone through once is left for the covariance.
        if self._linear is None or not gp.is_as_drawn() or isinstance(data, Iterator):
            return False
        weights = _least_squares(model, gp, copy.deepcopy(self._linear), data, outputs, batch_size, seed)
        self._linear = None
        if weights is not None:
            gp.set_output_weights(weights)
        return weights is not None


def _least_squares(
    model: nn.Module,
    gp: RandomFeatureGaussianProcess,
    linear: nn.Linear,
    data: Any,
    outputs: Outputs,
    batch_size: int | None,
    seed: int,
) -> Tensor | None:
    """Answers output weights ``(M, C)`` with which the Gaussian process answers as the classifier, if that is known.

    Several workers decide alike; of their weights those of the first will be taken, as of all others.
    """
    device = device_of(model)
    linear, model = linear.to(device), in_eval_mode(model)
    loader = training_loader(data, batch_size or 128, torch.Generator().manual_seed(seed))
    given = (as_batch(item).to(device) for item in loader)
    judging: list[Batch] = []
    features: list[Tensor] = []
    known = torch.zeros((), device=device)
    with together(device):
        for batch in given:
            judging.append(batch)
            if sum(batch.num_inputs or 1 for batch in judging) >= _JUDGING:
                break
        if judging and _knows(model, linear, judging, outputs):
            features += [x.flatten(0, -2) for x in features_that_count(model, judging)]
            known += 1
    if several_workers():
        dist.all_reduce(known, dist.ReduceOp.MIN)
    if not known or not gp.decide(torch.cat(features)):
        return None
    gram = torch.zeros(gp.num_inducing, gp.num_inducing, dtype=torch.float64, device=device)
    products = torch.zeros(gp.num_inducing, gp.out_features, dtype=torch.float64, device=device)
    seen = 0
    with together(device):
        for x in chain(features, features_that_count(model, given)):
            phi = gp.features(x).flatten(0, -2)
            logits = linear(x.to(linear.weight.dtype)).flatten(0, -2) - gp.output_bias
            gram += (phi.T @ phi).double()
            products += (phi.T @ logits.to(phi.dtype)).double()
            seen += len(phi)
            if seen >= _INPUTS_A_FEATURE * gp.num_inducing:
                break
    gram.diagonal().add_(_RIDGE * float(gram.diagonal().sum()) / seen)
    return torch.cholesky_solve(products, torch.linalg.cholesky(gram))


def _knows(model: nn.Module, linear: nn.Linear, judging: list[Batch], outputs: Outputs) -> bool:
    """Answers whether the model with its own classifier is better than the uniform distribution, or cannot be told."""
    gains = []
    for batch in judging:
        targets = as_targets(batch.targets)
        if targets is None:
            return True
        with recorded(plain=True) as calls:
            model(*batch.args, **batch.kwargs)
        if len(calls) != 1:
            return True
        logits = linear(calls[0].inputs.to(linear.weight.dtype)).to(calls[0].output.dtype)
        log_probs = log_probs_of(logits_of(repeating(model, batch.args, batch.kwargs)(logits)), outputs).double()
        if targets.ndim == 1:
            if not bool(((targets >= 0) & (targets < log_probs.shape[1])).all()):
                return False  # who trains on them is told
            targets = F.one_hot(targets.long(), log_probs.shape[1])
        gains.append((targets.to(log_probs) * log_probs).sum(1) + math.log(log_probs.shape[1]))
    gain = torch.cat(gains)
    # A few inputs may be guessed: two standard errors above nothing are no luck.
    return bool(gain.mean() > 2 * gain.std(correction=0) / math.sqrt(len(gain)))
