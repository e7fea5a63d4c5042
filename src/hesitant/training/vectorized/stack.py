"""A training step of all members as one: their weights stacked, forward and backward by ``torch.func.vmap``."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hesitant.inputs import Batch, map_tensors, tensors_of
from hesitant.methods import SNGP, OutputProbe, derived_seed, logits_of
from hesitant.methods.dropout import Masks
from hesitant.methods.members import BatchedKernelsAlone, plain_attributes
from hesitant.nn import RandomFeatureGaussianProcess
from hesitant.training.loop import require_classes
from hesitant.training.schedule import Schedule
from hesitant.training.settings import NO_TARGETS, Settings
from hesitant.training.vectorized.eligibility import network_of
from hesitant.training.vectorized.member_batches import stacked
from hesitant.training.vectorized.stacked_functions import StackedFunctions, WithoutDropout
from hesitant.training.vectorized.weights import CannotStackError, StackedWeights

_AGREEMENT = {"no": 1e-3, "bf16": 5e-2}  # of a member's loss among others with its loss alone, relative


class MemberStack:
    """Members of one architecture, trained as one.

    Args:
        members: In training mode, on one device.
        settings: How to train; their seed is that of the stack's dropout.
        steps_per_epoch: Of the optimizer; None where the data do not say how many they are.

    Attributes:
        weights: Of the members, stacked.
        optimizer: Of the stacked weights.
        schedule: Of the optimizer's learning rate.
    """

    def __init__(self, members: Sequence[nn.Module], settings: Settings, steps_per_epoch: int | None) -> None:
        self._members, self._settings = list(members), settings
        networks = [network_of(member) for member in members]
        self._base = copy.deepcopy(networks[0]).train()  # runs with the weights of each
        self._forget_covariances()
        self.weights = StackedWeights(networks)
        self.optimizer = self.weights.optimizer(settings.make_optimizer, members[0])
        self.schedule = Schedule(settings.make_scheduler, settings.schedule_every, self.optimizer, steps_per_epoch)
        if isinstance(self.schedule.scheduler, ReduceLROnPlateau):
            raise CannotStackError("each member has a plateau of its own, and ReduceLROnPlateau sets one rate for all")
        self._loss, self._penalized = settings.loss_of(members[0]), _penalized(members[0])
        self._template = Batch()
        self._every = vmap(self._objective, randomness="different")

    def rehearse(self, batches: Sequence[Batch]) -> None:
        """Runs a step without its end, and compares it with the members' own: nothing changes.

        Raises:
            CannotStackError: The loss of a member among others is not the one that it has alone, or the model keeps
                something of what it sees.
        """
        buffers = {name: buffer.clone() for name, buffer in self.weights.buffers.items()}
        kept = plain_attributes(self._base)
        self._backward(batches, self._masks(0))
        self._put_back(buffers)
        losses, _ = self._backward(batches, None)
        self._put_back(buffers)
        self.optimizer.zero_grad()
        tolerance = _AGREEMENT[self._settings.mixed_precision]
        for index, (batch, together) in enumerate(zip(batches, losses.tolist(), strict=True)):
            alone = self._loss_alone(index, batch)
            if math.isclose(alone, together, rel_tol=tolerance, abs_tol=tolerance):
                continue
            if alone == self._loss_alone(index, batch):  # else it draws by other means than F.dropout
                raise CannotStackError(f"the loss of members[{index}] is {alone:.6g}, and {together:.6g} among others")
        if plain_attributes(self._base) != kept:
            raise CannotStackError("the model changes its own attributes while it trains")

    def _put_back(self, buffers: dict[str, Tensor]) -> None:
        for name, buffer in self.weights.buffers.items():
            if name in self.weights.moving:
                buffer.copy_(buffers[name])
            elif not _equal(buffer, buffers[name]):
                raise CannotStackError("the model keeps statistics while it trains")

    def epoch(self, number: int, batches: Iterator[Sequence[Batch] | Batch]) -> Tensor:
        """Trains for one epoch, and answers the mean loss of each member, ``(M,)`` float64.

        No other epoch has a part in what is drawn in it: a resumed run draws as an unbroken one.
        """
        self._forget_covariances()
        torch.manual_seed(derived_seed(self._settings.seed, number))
        masks, device = self._masks(number), self.weights.device
        total = torch.zeros(len(self._members), dtype=torch.float64, device=device)
        counts = torch.zeros(len(self._members), dtype=torch.float64)
        check = self._settings.loss is None and number == 0
        pending = 0
        for batch in batches:
            self._project()
            losses, logits = self._backward(batch, masks, check=check)
            lengths = [len(of_member) for of_member in logits]
            total += losses.double() * losses.new_tensor(lengths, dtype=torch.float64)
            counts += torch.tensor(lengths)
            pending += 1
            if pending == self._settings.gradient_accumulation_steps:
                self._step()
                pending = 0
        if pending:
            self._step()
        if not counts.any():
            raise ValueError("data holds no batch: expected at least one input.")
        return total.cpu() / counts

    # ---------------------------------------------------------------- inside

    def _forget_covariances(self) -> None:
        """Forgets what stacked weights must not be compared with; what has moved before is forgotten, too."""
        for module in self._base.modules():
            if isinstance(module, RandomFeatureGaussianProcess):
                module.reset_covariance()

    def _masks(self, epoch: int) -> Masks:
        return Masks([(self._settings.seed, epoch)])

    def _objective(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], tensors: list[Tensor], targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Answers what one member minimises, its loss and its logits."""
        given = iter(tensors)
        batch = map_tensors(self._template, lambda _: next(given))
        with self._autocast():
            output = functional_call(self._base, (parameters, buffers), batch.args, batch.kwargs)
        logits = logits_of(output).float()
        loss = self._loss(logits, targets)
        return loss + self._regularization(parameters, buffers), loss.detach(), logits.detach()

    def _regularization(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor | float:
        """Answers what one member minimises beside its loss."""
        if self._penalized is None:
            return 0.0
        path, gp = self._penalized
        weights = parameters[f"{path}beta"]
        if gp.parametrization is not None:
            own = {name: buffers[f"{path}parametrization.{name}"] for name, _ in gp.parametrization.named_buffers()}
            weights = functional_call(gp.parametrization, own, (weights,))
        return gp.l2_penalty * weights.square().sum()

    def _autocast(self) -> Any:
        if self._settings.mixed_precision != "bf16":
            return nullcontext()
        return torch.autocast(self.weights.device.type, torch.bfloat16, cache_enabled=False)

    def _backward(
        self, batches: Sequence[Batch] | Batch, masks: Masks | None, *, check: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Adds the gradients of a step; answers the members' losses ``(M,)`` and logits."""
        together = batches if isinstance(batches, Batch) else stacked(batches)
        logits: list[Tensor]
        if together is not None:
            losses, all_logits = self._backward_of(slice(None), together, masks)
            logits = list(all_logits)
        else:  # of different shapes: members that see longer texts than others
            parts = [
                self._backward_of(slice(i, i + 1), cast(Batch, stacked([batch])), masks)
                for i, batch in enumerate(cast(Sequence[Batch], batches))
            ]
            losses, logits = torch.cat([part[0] for part in parts]), [part[1][0] for part in parts]
        if check:
            targets = together.targets if together is not None else [b.targets for b in cast(Sequence[Batch], batches)]
            for of_member, answers in zip(cast(Sequence[Tensor], targets), logits, strict=True):
                require_classes(of_member, answers)
        return losses, logits

    def _backward_of(self, rows: slice, batch: Batch, masks: Masks | None) -> tuple[Tensor, Tensor]:
        if batch.targets is None:
            raise ValueError(NO_TARGETS)
        self._template = batch
        parameters, buffers = self.weights.of_members(rows)
        with BatchedKernelsAlone(), StackedFunctions(len(batch.targets), masks):
            objectives, losses, logits = self._every(parameters, buffers, tensors_of(batch), batch.targets)
        (objectives.sum() / self._settings.gradient_accumulation_steps).backward()
        return losses, logits

    @torch.no_grad()
    def _loss_alone(self, index: int, batch: Batch) -> float:
        """Answers the loss that a member has by itself, without dropout; and looks at how its code ends."""
        self._template = batch
        of_all, all_buffers = self.weights.of_members(slice(None))
        parameters = {name: parameter[index] for name, parameter in of_all.items()}
        buffers = {name: buffer[index].clone() for name, buffer in all_buffers.items()}
        looks = self._settings.loss is None and index == 0
        with WithoutDropout(), OutputProbe() if looks else nullcontext() as probe:
            _, loss, logits = self._objective(parameters, buffers, tensors_of(batch), cast(Tensor, batch.targets))
        if probe is not None:
            probe.require(logits, self._settings.outputs_of(self._members[0]), self._members[0])
        return float(loss)

    def _project(self) -> None:
        for member in self._members:
            if isinstance(member, SNGP) and member.spectral_normalizer is not None:
                member.spectral_normalizer.project()

    def _step(self) -> None:
        if self._settings.max_grad_norm is not None:
            self.weights.clip_gradients(self._settings.max_grad_norm)
        self.optimizer.step()
        self.schedule.after_step()
        self.optimizer.zero_grad()


def _penalized(member: nn.Module) -> tuple[str, RandomFeatureGaussianProcess] | None:
    """Answers the layer whose output weights' squares are added to the loss, and the prefix of its names."""
    if not isinstance(member, SNGP) or member.gp.l2_penalty == 0:
        return None
    return f"{member.classifier_name}." if member.classifier_name else "", member.gp


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a != a) & (b != b)).all())
