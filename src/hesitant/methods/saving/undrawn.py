"""Builds a network whose weights are about to be replaced: nothing is drawn, and no more made than there is to load."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["Undrawn"]

# What draws into a tensor that is there: of torch.nn.init, of transformers.initialization, and of tensors themselves.
_FILLS = frozenset(
    (
        "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
        "kaiming_normal_", "orthogonal_", "sparse_", "erfinv_", "bernoulli_", "exponential_", "log_normal_", "cauchy_",
        "geometric_", "random_",
    )
)  # fmt: skip
_DRAWS = frozenset((torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal))
_MAKES = frozenset(
    (
        torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm,
        torch.arange, torch.linspace, torch.logspace, torch.eye, torch.empty_strided,
    )
)  # fmt: skip


class Undrawn(TorchFunctionMode):
    """Leaves out what draws weights, and refuses to make more than a budget, before memory is taken for it.

    What is drawn all the same comes from a generator of its own, so that no generator of the process moves. It holds in
    the thread that enters it, and in no other.

    Args:
        most_numbers: That all tensors together may have.
        most_tensors: That may be made.
        most_calls: Of functions of torch.

    Raises:
        ValueError: By what is built within: it would take more.
    """

    def __init__(self, most_numbers: int, most_tensors: int, most_calls: int) -> None:
        super().__init__()
        self._numbers, self._tensors, self._calls = most_numbers, most_tensors, most_calls
        self._generator = torch.Generator().manual_seed(0)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answers what a function of torch answers, or, where it would draw, the tensor as it is."""
        given = dict(kwargs or {})
        self._calls -= 1
        self._require_within()
        if getattr(func, "__name__", None) in _FILLS:
            return args[0] if args else given.get("tensor")
        if func in _MAKES:
            self._spend(func, args, given)
        if func in _DRAWS and given.get("generator") is None and str(given.get("device") or "cpu") == "cpu":
            given["generator"] = self._generator
        return func(*args, **given)

    def _spend(self, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> None:
        unmade = {
            name: value for name, value in given.items() if name not in ("device", "generator", "pin_memory", "out")
        }
        self._tensors -= 1
        # Not what it takes tensors for: of those there is memory already.
        if not any(isinstance(value, torch.Tensor) for value in (*args, *unmade.values())):
            self._numbers -= func(*args, **unmade, device="meta").numel()
        self._require_within()

    def _require_within(self) -> None:
        if min(self._tensors, self._numbers, self._calls) < 0:
            raise ValueError(
                "it would be far larger than the weights that were saved: its arguments are not those of this model"
            )
