"""The weights of all members as rows of stacked ones, and the optimizer of these as each member's own would be."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hesitant.nn import LaplaceCovariance, RandomFeatureGaussianProcess
from hesitant.training.settings import MakeOptimizer

# What these do to a number depends on no other: stacked weights move as each member's own would.
ELEMENTWISE = (
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.AdamW,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
)


class CannotStackError(Exception):
    """These members cannot be trained in one pass; the message says why."""


class StackedWeights:
    """The parameters and buffers of networks of one architecture, ``(M, ...)``, which are the members' until released.

    Of the buffers, running kernel scales alone move.

    The weights of linear layers are kept ``(M, in, out)``, the other way round than the members have them: so kept,
    their gradients come as they are kept.

    Args:
        networks: Of one architecture, on one device.

    Attributes:
        parameters: By name, as they are kept.
        buffers: By name; without those of a covariance, for which training has no use.
        moving: The names of the buffers that move.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = list(networks)
        self._turned = _weights_of_linear_layers(networks[0])
        self.parameters = {}
        for name, first in networks[0].named_parameters():
            kept = self._joined(name, [network.get_parameter(name).detach() for network in networks])
            self.parameters[name] = nn.Parameter(kept, first.requires_grad)
        unused = _covariance_names(networks[0])
        self.buffers = {
            name: torch.stack([network.get_buffer(name) for network in networks])
            for name, _ in networks[0].named_buffers()
            if name not in unused
        }
        self.moving = [
            f"{prefix}.scale.{name}" if prefix else f"scale.{name}"
            for prefix, module in networks[0].named_modules()
            if isinstance(module, RandomFeatureGaussianProcess) and module.scale.follows
            for name in module.scale.FOLLOWING
        ]
        self.device = next(iter(self.parameters.values())).device

    def attach(self) -> None:
        """Makes the members' parameters rows of the stacked ones: a step of these is one of theirs."""
        for name, stacked in self.parameters.items():
            for row, network in zip(self._used(name, stacked.data), self._networks, strict=True):
                network.get_parameter(name).data = row
        for name in self.moving:
            for row, network in zip(self.buffers[name], self._networks, strict=True):
                network.get_buffer(name).data = row

    def release(self) -> None:
        """Gives the members' parameters storage of their own again."""
        for name, stacked in self.parameters.items():
            for row, network in zip(self._used(name, stacked.data), self._networks, strict=True):
                network.get_parameter(name).data = row.clone(memory_format=torch.contiguous_format)
        for name in self.moving:
            for row, network in zip(self.buffers[name], self._networks, strict=True):
                network.get_buffer(name).data = row.clone()

    def of_members(self, rows: slice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Answers the parameters and buffers of some members as these use them, ``(m, ...)``."""
        parameters = {name: self._used(name, kept)[rows] for name, kept in self.parameters.items()}
        return parameters, {name: buffer[rows] for name, buffer in self.buffers.items()}

    def optimizer(self, make: MakeOptimizer, member: nn.Module) -> Optimizer:
        """Answers the optimizer that is made for the first member, with the stacked weights in place of its own.

        Raises:
            CannotStackError: It is not known to treat each number by itself.
        """
        stacked = {id(p): self.parameters[name] for name, p in self._networks[0].named_parameters()}
        made = make([p for p in member.parameters() if p.requires_grad])
        if type(made) not in ELEMENTWISE:
            raise CannotStackError(f"{type(made).__name__} is not known to treat each number by itself")
        groups = [{**group, "params": [stacked[id(p)] for p in group["params"]]} for group in made.param_groups]
        known = inspect.signature(type(made)).parameters
        return type(made)(groups, **{name: value for name, value in made.defaults.items() if name in known})

    def optimizer_state(self, optimizer: Optimizer, member: int) -> dict[str, Any]:
        """Answers what the state of the member's own optimizer would be."""
        state, names = optimizer.state_dict(), self._moved_by(optimizer)

        def own(index: int, value: Any) -> Any:
            if not isinstance(value, Tensor) or value.shape != self.parameters[names[index]].shape:
                return value
            return self._used(names[index], value)[member]

        entries = {
            index: {name: own(index, value) for name, value in entry.items()} for index, entry in state["state"].items()
        }
        return {"state": entries, "param_groups": state["param_groups"]}

    def load_optimizer_states(self, optimizer: Optimizer, states: Sequence[dict[str, Any]]) -> None:
        """Gives the optimizer the states of the members' own."""
        names = self._moved_by(optimizer)

        def joined(index: int, values: list[Any]) -> Any:
            own = self._networks[0].get_parameter(names[index])
            if not isinstance(values[0], Tensor) or values[0].shape != own.shape:
                return values[0]
            return self._joined(names[index], values)

        entries = {
            index: {name: joined(index, [state["state"][index][name] for state in states]) for name in entry}
            for index, entry in states[0]["state"].items()
        }
        optimizer.load_state_dict({"state": entries, "param_groups": states[0]["param_groups"]})

    @torch.no_grad()
    def clip_gradients(self, limit: float) -> None:
        """Scales down each member's gradients where their norm is above the limit, as torch clips those of a model."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not gradients:
            return
        norms = torch.stack([gradient.flatten(1).float().norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (limit / (norms + 1e-6)).clamp(max=1)  # (M,)
        for gradient in gradients:
            gradient.mul_(factors.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1)))

    # ---------------------------------------------------------------- inside

    def _joined(self, name: str, rows: Sequence[Tensor]) -> Tensor:
        return torch.stack([row.T for row in rows] if name in self._turned else list(rows))

    def _used(self, name: str, kept: Tensor) -> Tensor:
        return kept.transpose(1, 2) if name in self._turned else kept

    def _moved_by(self, optimizer: Optimizer) -> list[str]:
        """Answers the names of what the optimizer moves, as it counts them."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _weights_of_linear_layers(network: nn.Module) -> set[str]:
    linear = {id(module.weight) for module in network.modules() if isinstance(module, nn.Linear)}
    return {name for name, parameter in network.named_parameters() if id(parameter) in linear}


def _covariance_names(network: nn.Module) -> set[str]:
    """Answers the buffers of covariances: a matrix of a million numbers for each member."""
    return {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        if isinstance(module, LaplaceCovariance)
        for name, _ in module.named_buffers()
    }
