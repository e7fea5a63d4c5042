"""Members of one architecture as one: their weights stacked, a step of all in one vectorised pass."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hesitant.inputs import Batch, Order, Rows, map_tensors, tensors_of
from hesitant.methods import SNGP, Deterministic, MCDropout
from hesitant.methods.alike import plain_attributes
from hesitant.methods.member_masks import Drawing, MemberMasks, drawing_from
from hesitant.methods.outputs import logits_of
from hesitant.nn import RandomFeatureGaussianProcess
from hesitant.nn.laplace import LaplaceCovariance
from hesitant.schedule import Schedule
from hesitant.training_run import finite, require_classes
from hesitant.training_settings import NO_TARGETS, Settings

_AGREEMENT = {"no": 1e-3, "bf16": 5e-2}  # of a member's loss among others with its loss alone, relative


class CannotStackError(Exception):
    """These members cannot be trained in one pass; the message says why."""


def network_of(member: nn.Module) -> nn.Module:
    """Answers what runs in a member's training forward."""
    return member.model if type(member) in (SNGP, MCDropout, Deterministic) else member  # type: ignore[return-value]


class MemberStack:
    """Some members of one architecture. Their weights are rows of stacked ones until they are released.

    Args:
        members: Of one architecture, in training mode, on one device.
        seeds: Of each, its dropout.
        drawing: How their model draws.
        settings: How to train.
    """

    def __init__(
        self, members: Sequence[nn.Module], seeds: Sequence[int], drawing: Drawing, settings: Settings
    ) -> None:
        self.members, self.seeds = list(members), list(seeds)
        self.networks = [network_of(member) for member in members]
        self.settings, self.drawing = settings, drawing
        self.loss = settings.loss_of(members[0])
        self.base = copy.deepcopy(self.networks[0]).train()
        for module in self.base.modules():
            if isinstance(module, RandomFeatureGaussianProcess):
                module.reset_covariance()  # which stacked weights must not be compared with
        self.penalty = _penalty(members[0])
        self._turned = _turned(self.networks[0])
        self.parameters = {}
        for name, first in self.networks[0].named_parameters():
            kept = self._joined(name, [_parameter(network, name).detach() for network in self.networks])
            self.parameters[name] = nn.Parameter(kept, first.requires_grad)
        unused = _covariance_names(self.networks[0])
        self.buffers = {
            name: torch.stack([n.get_buffer(name) for n in self.networks])
            for name, _ in self.networks[0].named_buffers()
            if name not in unused
        }
        self.device = next(iter(self.parameters.values())).device
        self.optimizer = self._make_optimizer()
        self.schedule = Schedule(settings.make_scheduler, settings.schedule_every, self.optimizer)
        if isinstance(self.schedule.scheduler, ReduceLROnPlateau):
            raise CannotStackError("each member has a plateau of its own, and ReduceLROnPlateau sets one rate for all")
        self._autocast = settings.mixed_precision == "bf16"
        self._template = Batch()
        self._every = vmap(self._objective, randomness="error" if drawing is Drawing.FUNCTIONS else "different")

    # ---------------------------------------------------------------- the members' weights

    def attach(self) -> None:
        """Makes the members' parameters rows of the stacked ones: a step of these is one of theirs."""
        for name, stacked in self.parameters.items():
            for row, network in zip(self._used(name, stacked.data), self.networks, strict=True):
                _parameter(network, name).data = row

    def release(self) -> None:
        """Gives the members' parameters storage of their own again."""
        for name, stacked in self.parameters.items():
            for row, network in zip(self._used(name, stacked.data), self.networks, strict=True):
                _parameter(network, name).data = row.clone(memory_format=torch.contiguous_format)

    # ---------------------------------------------------------------- training

    def rehearse(self, batches: Sequence[Batch]) -> None:
        """Runs a step without its end, and compares it with the members' own: nothing changes.

        Raises:
            CannotStackError: The loss of a member among others is not the one that it has alone, or the model keeps
                something of what it sees.
        """
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        kept = plain_attributes(self.base)
        masks = self._masks(0)
        losses, _ = self._backward(batches, masks)
        self.optimizer.zero_grad()
        if any(not _equal(buffer, self.buffers[name]) for name, buffer in buffers.items()):
            raise CannotStackError("the model keeps statistics while it trains")
        tolerance = _AGREEMENT[self.settings.mixed_precision]
        for index, (batch, together) in enumerate(zip(batches, losses.tolist(), strict=True)):
            alone = float(self._loss_alone(index, batch))
            if not math.isclose(alone, together, rel_tol=tolerance, abs_tol=tolerance):
                raise CannotStackError(f"the loss of members[{index}] is {alone:.6g}, and {together:.6g} among others")
        if plain_attributes(self.base) != kept:
            raise CannotStackError("the model changes its own attributes while it trains")

    def epoch(self, number: int, batches: Iterator[Sequence[Batch] | Batch]) -> Tensor:
        """Trains for one epoch, and answers the mean loss of each member, ``(M,)`` float64."""
        masks = self._masks(number)
        total = torch.zeros(len(self.members), dtype=torch.float64, device=self.device)
        counts = torch.zeros(len(self.members), dtype=torch.float64)
        accumulate = self.settings.gradient_accumulation_steps
        check = self.settings.loss is None and number == 0
        pending = 0
        for batch in batches:
            self._project()
            losses, logits = self._backward(batch, masks, check=check)
            lengths = [len(of_member) for of_member in logits]
            total += losses.double() * losses.new_tensor(lengths, dtype=torch.float64)
            counts += torch.tensor(lengths)
            pending += 1
            if pending == accumulate:
                self._step()
                pending = 0
        if pending:
            self._step()
        if not counts.any():
            raise ValueError("data holds no batch: expected at least one input.")
        return total.cpu() / counts

    # ---------------------------------------------------------------- the optimizer, as each member would have it

    def optimizer_state(self, member: int) -> dict[str, Any]:
        """Answers what the state of the member's own optimizer would be."""
        state = self.optimizer.state_dict()
        names = self._optimized()

        def own(index: int, value: Any) -> Any:
            if not isinstance(value, Tensor) or value.shape != self.parameters[names[index]].shape:
                return value
            return self._used(names[index], value)[member]

        entries = {
            index: {name: own(index, value) for name, value in entry.items()} for index, entry in state["state"].items()
        }
        return {"state": entries, "param_groups": state["param_groups"]}

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        """Takes the states of the members' own optimizers."""
        names = self._optimized()

        def joined(index: int, values: list[Any]) -> Any:
            if not isinstance(values[0], Tensor) or values[0].shape != _parameter(self.base, names[index]).shape:
                return values[0]
            return self._joined(names[index], values)

        entries = {
            index: {name: joined(index, [state["state"][index][name] for state in states]) for name in entry}
            for index, entry in states[0]["state"].items()
        }
        self.optimizer.load_state_dict({"state": entries, "param_groups": states[0]["param_groups"]})

    # ---------------------------------------------------------------- inside

    def _joined(self, name: str, rows: Sequence[Tensor]) -> Tensor:
        """Answers the members' weights as they are kept, those of linear layers ``(M, in, out)``."""
        return torch.stack([row.T for row in rows] if name in self._turned else list(rows))

    def _used(self, name: str, kept: Tensor) -> Tensor:
        """Answers what is kept as the members use it."""
        return kept.transpose(1, 2) if name in self._turned else kept

    def _optimized(self) -> list[str]:
        """Answers the names of what the optimizer moves, as it counts them."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        return [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]

    def _make_optimizer(self) -> Optimizer:
        """Answers the optimizer that the settings make for one member, with the stacked weights in place of its own."""
        own = dict(self.networks[0].named_parameters())
        stacked = {id(parameter): self.parameters[name] for name, parameter in own.items()}
        made = self.settings.make_optimizer([p for p in self.members[0].parameters() if p.requires_grad])
        if type(made) not in ELEMENTWISE:
            raise CannotStackError(f"{type(made).__name__} is not known to treat each number by itself")
        groups = [{**group, "params": [stacked[id(p)] for p in group["params"]]} for group in made.param_groups]
        known = inspect.signature(type(made)).parameters
        return type(made)(groups, **{name: value for name, value in made.defaults.items() if name in known})

    def _masks(self, epoch: int) -> MemberMasks:
        return MemberMasks([(seed, epoch) for seed in self.seeds], self.device, together=True)

    def _objective(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], tensors: list[Tensor], targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answers what one member minimises, its loss and its logits."""
        given = iter(tensors)
        batch = map_tensors(self._template, lambda _: next(given))
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if self._autocast else nullcontext():
            output = functional_call(self.base, (parameters, buffers), batch.args, batch.kwargs)
        logits = logits_of(output).float()
        loss = self.loss(logits, targets)
        if self.penalty is None:
            return loss, loss.detach(), logits.detach()
        name, factor = self.penalty
        return loss + factor * parameters[name].square().sum(), loss.detach(), logits.detach()

    def _backward(
        self, batches: Sequence[Batch] | Batch, masks: MemberMasks, *, check: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Adds the gradients of a step; answers the members' losses ``(M,)`` and logits."""
        stacked = batches if isinstance(batches, Batch) else _stacked(batches)
        logits: list[Tensor]
        if stacked is not None:
            losses, together = self._backward_of(slice(None), stacked, masks)
            logits = list(together)
        else:  # of different shapes: members that see longer texts than others
            parts = [
                self._backward_of(slice(i, i + 1), cast(Batch, _stacked([batch])), masks.of(i))
                for i, batch in enumerate(cast(Sequence[Batch], batches))
            ]
            losses, logits = torch.cat([part[0] for part in parts]), [part[1][0] for part in parts]
        if check:
            targets = stacked.targets if stacked is not None else [b.targets for b in cast(Sequence[Batch], batches)]
            for of_member, answers in zip(cast(Sequence[Tensor], targets), logits, strict=True):
                require_classes(of_member, answers)
        return losses, logits

    def _backward_of(self, rows: slice, batch: Batch, masks: MemberMasks) -> tuple[Tensor, Tensor]:
        if batch.targets is None:
            raise ValueError(NO_TARGETS)
        tensors = tensors_of(batch)
        self._template = batch
        parameters = {name: self._used(name, kept) for name, kept in self.parameters.items()}
        buffers = self.buffers
        if rows != slice(None):
            parameters = {name: p[rows] for name, p in parameters.items()}
            buffers = {name: b[rows] for name, b in buffers.items()}
        with drawing_from(masks, self.drawing):
            objectives, losses, logits = self._every(parameters, buffers, tensors, batch.targets)
        (objectives.sum() / self.settings.gradient_accumulation_steps).backward()
        return losses, logits

    def _loss_alone(self, index: int, batch: Batch) -> Tensor:
        masks = MemberMasks([(self.seeds[index], 0)], self.device, together=False)
        tensors = tensors_of(batch)
        self._template = batch
        parameters = {name: self._used(name, kept.detach())[index] for name, kept in self.parameters.items()}
        buffers = {name: b[index].clone() for name, b in self.buffers.items()}
        with torch.no_grad(), drawing_from(masks, self.drawing):
            return self._objective(parameters, buffers, tensors, cast(Tensor, batch.targets))[1]

    def _project(self) -> None:
        for member in self.members:
            if isinstance(member, SNGP) and member.spectral_normalizer is not None:
                member.spectral_normalizer.project()

    @torch.no_grad()
    def _step(self) -> None:
        limit = self.settings.max_grad_norm
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if limit is not None and gradients:
            norms = torch.stack([gradient.flatten(1).float().norm(dim=1) for gradient in gradients]).norm(dim=0)
            factors = (limit / (norms + 1e-6)).clamp(max=1)  # (M,), as torch clips
            for gradient in gradients:
                gradient.mul_(factors.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1)))
        self.optimizer.step()
        self.schedule.after_step()
        self.optimizer.zero_grad()


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


def rows_for_all(rows: Rows, orders: Sequence[Order], batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Gives the members' batches of one epoch, stacked, each in its own order."""
    order = torch.stack([order.draw() for order in orders])  # (M, N)
    for chosen in order.to(tensors_of(rows.whole)[0].device).split(batch_size, dim=1):
        yield rows.take(chosen).to(device)


def _parameter(network: nn.Module, name: str) -> nn.Parameter:
    return network.get_parameter(name)


def _turned(network: nn.Module) -> set[str]:
    """Answers the weights of linear layers: kept the other way round, their gradients come as they are kept."""
    linear = {id(module.weight) for module in network.modules() if isinstance(module, nn.Linear)}
    return {name for name, parameter in network.named_parameters() if id(parameter) in linear}


def _penalty(member: nn.Module) -> tuple[str, float] | None:
    """Answers the name and the factor of the weights whose squares are added to the loss."""
    if not isinstance(member, SNGP):
        return None
    prefix = f"{member.classifier_name}." if member.classifier_name else ""
    return f"{prefix}beta", member.gp.l2_penalty


def _covariance_names(network: nn.Module) -> set[str]:
    """Answers the buffers that training has no use for: a matrix of a million numbers for each member."""
    return {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        if isinstance(module, LaplaceCovariance)
        for name, _ in module.named_buffers()
    }


def _stacked(batches: Sequence[Batch]) -> Batch | None:
    """Answers the members' batches as one, or None where they differ in more than their numbers."""
    parts: list[list[Tensor]] = []
    others: list[Any] = []
    for batch in batches:
        tensors: list[Tensor] = []
        rest = map_tensors(batch, lambda tensor, found=tensors: found.append(tensor))  # type: ignore[misc]
        parts.append(tensors if batch.targets is None else [*tensors, batch.targets])
        others.append((rest.args, rest.kwargs))
    kinds = [[(tensor.shape, tensor.dtype) for tensor in tensors] for tensors in parts]
    if any(kind != kinds[0] for kind in kinds) or any(other != others[0] for other in others):
        return None
    joined = [torch.stack(list(column)) for column in zip(*parts, strict=True)]
    given = iter(joined)
    stacked = map_tensors(batches[0], lambda _: next(given))
    return Batch(stacked.args, stacked.kwargs, None if batches[0].targets is None else joined[-1])


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a != a) & (b != b)).all())


def member_losses(losses: Tensor, stopped: Callable[[int], bool]) -> list[float]:
    """Answers the losses, if all are numbers but those of members that have stopped.

    Raises:
        ValueError: One is none.
    """
    answer = losses.tolist()
    for index, loss in enumerate(answer):
        if not stopped(index):
            try:
                finite(loss)
            except ValueError as error:
                raise ValueError(f"members[{index}]: {error}") from None
    return answer
