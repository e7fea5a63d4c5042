"""What a call has left behind: on models, in the process, in the thread."""

import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_COMPARED_BY_VALUE = (bool, int, float, str, bytes, type(None))


class Snapshot:
    """Models and the process as they are now, to be compared with what they are later.

    Of each module: its modes, attributes, hooks, and what stands in the containers among them, each by identity;
    parameters and buffers also by their bits and by the count of writes to them, so that what was written and put back
    is seen, too. Of the process: generators, warning filters, torch's switches.
    """

    def __init__(self, *models: nn.Module) -> None:
        self._models = models
        self._before = dict(self._seen())

    def differences(self) -> list[str]:
        """Answers the names of what is not as it was."""
        now = dict(self._seen())
        names = dict.fromkeys((*self._before, *now))
        return [name for name in names if not _same(self._before.get(name, _NOTHING), now.get(name, _NOTHING))]

    def _seen(self) -> Iterator[tuple[str, Any]]:
        for number, model in enumerate(self._models):
            for path, module in model.named_modules():
                for name, value in list(vars(module).items()):
                    place = f"models[{number}]{path and '.'}{path}.{name}"
                    yield place, value
                    entries: Any = ()
                    if isinstance(value, dict):
                        entries = list(value.items())
                    elif isinstance(value, (list, tuple, set)):
                        entries = list(enumerate(value))
                    for key, entry in entries:
                        yield f"{place}[{key!r}]", entry
                        if isinstance(entry, Tensor):
                            yield f"{place}[{key!r}] bits", entry.detach().clone()
                            state = (entry._version, entry.requires_grad, entry.grad is None, entry.data_ptr())
                            yield f"{place}[{key!r}] state", state
        yield from process_state().items()


def process_state() -> dict[str, Any]:
    """Answers what all threads share."""
    return {
        "Python's random numbers": random.getstate(),
        "NumPy's random numbers": np.random.get_state()[1].tolist(),  # type: ignore[index, union-attr]
        "torch's random numbers": torch.get_rng_state(),
        "warning filters": list(warnings.filters),
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "attention's fast path": torch.backends.mha.get_fastpath_enabled(),
        "attention's kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        **thread_state(),
    }


def thread_state() -> dict[str, Any]:
    """Answers what each thread has of its own."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
    }


_NOTHING = object()


def _same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        return not isinstance(before, nn.Parameter) and _same_bits(before, now)
    if isinstance(before, (list, tuple)) and type(before) is type(now):
        return len(before) == len(now) and all(_same(a, b) for a, b in zip(before, now, strict=True))
    return type(before) is type(now) and isinstance(before, _COMPARED_BY_VALUE) and bool(before == now)


def _same_bits(before: Tensor, now: Tensor) -> bool:
    alike = before.shape == now.shape and before.dtype == now.dtype
    return alike and bool(
        ((before == now) | (before.isnan() & now.isnan() if before.is_floating_point() else False)).all()
    )
