"""What MCDropout is compared with: the plain loop that a user would write, and the exact sum over all masks."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hesitant.methods.outputs import logits_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(output: Tensor) -> Tensor:
    """Class probabilities (N, C) of what a model answered."""
    if output.ndim == 1 or output.shape[1] == 1:
        output = torch.stack([torch.zeros_like(output.flatten()), output.flatten()], 1)
    ends_in_softmax = bool((output >= 0).all() & ((output.double().sum(1) - 1).abs() < 1e-5).all())
    return output if ends_in_softmax else output.softmax(-1)


def is_stochastic_depth(module: nn.Module) -> bool:
    return type(module).__name__.endswith(("DropPath", "StochasticDepth"))


def plain_passes(
    model: nn.Module, inputs: Any, num_samples: int, *, stochastic_depth: bool = False, seed: int = 0
) -> Tensor:
    """Samples (S, N, C): S passes in training mode, normalisation (and stochastic depth) in eval mode."""
    args: tuple[Any, ...] = (inputs,) if isinstance(inputs, Tensor) else ()
    args = tuple(inputs) if isinstance(inputs, list) else args
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module in model.modules():
        if isinstance(module, _NormBase) or (is_stochastic_depth(module) and not stochastic_depth):
            module.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        passes = [probabilities(logits_of(model(*args, **kwargs))) for _ in range(num_samples)]
    for module, mode in modes:
        module.training = mode
    return torch.stack(passes)


def largest_z(ours: Tensor, theirs: Tensor, rounding: float) -> float:
    """The largest z-score of a difference between the means of two sets of samples, (S, ...) and (S', ...)."""
    ours, theirs = ours.double(), theirs.double()
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    return float(((ours.mean(0) - theirs.mean(0)) / (error + rounding)).abs().max())


def assert_same_distribution(ours: Tensor, theirs: Tensor, *, jointly: bool = True, bound: float = 6.0) -> None:
    """Mean, spread, shape and (``jointly``) the dependence between inputs agree within Monte Carlo error.

    Smooth functions of the samples are compared rather than their ranks: samples that differ by rounding alone are the
    same. The bound is for the some 50,000 z-scores of a run of all tests: what is wrong shows at 10 and more.
    """
    assert ours.shape[1:] == theirs.shape[1:]
    assert bool(torch.isfinite(ours).all())
    center = theirs.mean(0)
    unit = theirs.std(0).clamp(min=1e-4)
    one, other = (ours - center) / unit, (theirs - center) / unit
    features = {
        "sin": (one.sin(), other.sin()),
        "cos": (one.cos(), other.cos()),
        "sin of thrice": ((3 * one).sin(), (3 * other).sin()),
        "cos of thrice": ((3 * one).cos(), (3 * other).cos()),
        "between classes": (one * one.roll(1, -1), other * other.roll(1, -1)),
    }
    if jointly and ours.shape[1] > 1:
        features["between inputs"] = (one * one.roll(1, 1), other * other.roll(1, 1))
    scores = {name: largest_z(*pair, rounding=3e-3) for name, pair in features.items()}
    scores["mean"] = largest_z(ours, theirs, rounding=1e-6)
    scores["spread"] = largest_z((ours - center) ** 2, (theirs - center) ** 2, rounding=1e-6)
    assert max(scores.values()) < bound, {name: round(score, 1) for name, score in scores.items()}


def all_masks(units: int, p: float) -> tuple[Tensor, Tensor]:
    """Every mask of kept units (M, units), 1 where kept, and its probability (M,)."""
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)
    return masks, (masks * (1 - p) + (1 - masks) * p).prod(1)


def assert_converged(samples: Tensor, outcomes: Tensor, weights: Tensor, *, bound: float = 5.0) -> None:
    """The mean and the variance of samples (S, C) are the exact ones of outcomes (M, C), within Monte Carlo error."""
    samples, outcomes, weights = samples.double(), outcomes.double(), weights.double().unsqueeze(1)
    assert abs(float(weights.sum()) - 1) < 1e-9
    mean = (weights * outcomes).sum(0)
    variance = (weights * (outcomes - mean) ** 2).sum(0)
    fourth = (weights * (outcomes - mean) ** 4).sum(0)
    assert bool((variance > 1e-6).all()), "the test would show nothing"
    z_mean = (samples.mean(0) - mean) / (variance / len(samples)).sqrt()
    z_variance = (((samples - mean) ** 2).mean(0) - variance) / ((fourth - variance**2) / len(samples)).sqrt()
    assert float(z_mean.abs().max()) < bound, z_mean
    assert float(z_variance.abs().max()) < bound, z_variance


class Reveals(nn.Module):
    """Its probabilities tell the output of ``dropout``: see :func:`revealed`."""

    scale = 0.1

    def __init__(self, dropout: Any) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        dropped = self.dropout(x).flatten(1)
        return torch.cat([self.scale * dropped, torch.zeros_like(dropped[:, :1])], 1)


def revealed(samples: Tensor) -> Tensor:
    """The dropout's outputs (S, N, D) in samples (S, N, D + 1) of a :class:`Reveals`."""
    logs = samples.double().log()
    return (logs[..., :-1] - logs[..., -1:]) / Reveals.scale


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and convolutions on tensors that have a content."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func._overloadpacket, kwargs or {}
        if packet not in flop_registry:
            with self:  # a linear or a matmul may come whole
                answer = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if answer is NotImplemented else answer
        answer = func(*args, **kwargs)
        if not any(isinstance(x, Tensor) and x.device.type == "meta" for x in args):
            self.count += flop_registry[packet](*args, **kwargs, out_val=answer)
        return answer


def operations(function: Callable[[], Any]) -> int:
    """How many of them a call takes."""
    with Operations() as mode, torch.no_grad():
        function()
    return mode.count
