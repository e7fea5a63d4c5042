"""Projects after the steps of ``torch.optim``, whose optimizers know no constraints: a user of PyTorch may train so."""

import importlib
import sys
import weakref
from typing import Any, Protocol


class Projecting(Protocol):
    """What has a kernel to project."""

    def project(self) -> None:
        """Projects it."""
        ...


_projecting: dict[int, tuple["weakref.ref[Any]", "weakref.ref[Any]"]] = {}
_hooked: list[Any] = []  # the handle of the one hook, once there is a kernel to look for


def project_after_steps_on(parameter: Any, layer: Projecting) -> None:
    """Lets the layer project whenever an optimizer of ``torch.optim`` has stepped on its kernel's parameter."""
    key = id(parameter)
    _projecting[key] = (weakref.ref(parameter, lambda _: _projecting.pop(key, None)), weakref.ref(layer))
    if not _hooked:
        optimizers = importlib.import_module("torch.optim.optimizer")
        _hooked.append(optimizers.register_optimizer_step_post_hook(_after_step))


def _after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            known, layer = _projecting.get(id(parameter), (None, None))
            if known is None or layer is None or known() is not parameter:
                continue
            projecting = layer()
            if projecting is not None:
                with sys.modules["torch"].no_grad():
                    projecting.project()
