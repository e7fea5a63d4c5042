"""The answers of an ensemble's plain members: one after another, or as one where they are alike and that pays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from hesitant.inputs import Batch, map_tensors, tensors_of
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.members.given_batch import GivenBatch
from hesitant.methods.members.stackable import why_not_stackable
from hesitant.methods.outputs import Ending, Outputs, log_probs_of, logits_of, require_kind, require_rows
from hesitant.methods.replica import in_eval_mode, replica
from hesitant.methods.temperature import tempered
from hesitant.methods.wrapper import Gathered, device_of, outputs_of, probed_logits
from hesitant.prediction import Mixture, as_finite, evidence_of, two_class_logits


class DeterministicMembers:
    """Plain models that answer the batches of one call, in eval mode and without gradients.

    Args:
        members: The models, or :class:`Deterministic` around them.
        vectorize: Whether they run as one by ``torch.func.vmap``: None on an accelerator, if they can, as a CPU is as
            fast one by one; True wherever they can; False nowhere.
        outputs: What plain models answer; a :class:`Deterministic` says so itself.
        ending: What is known of how their code ends; the first time, each is looked at by itself.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        vectorize: bool | None,
        outputs: Outputs = "logits",
        ending: Ending | None = None,
    ) -> None:
        self.networks = [member.model if isinstance(member, Deterministic) else member for member in members]
        self.kinds = [outputs_of(member) if isinstance(member, Deterministic) else outputs for member in members]
        self.temperatures = [member.temperature if isinstance(member, Deterministic) else 1.0 for member in members]
        devices = {device_of(network) for network in self.networks}
        wanted = devices != {torch.device("cpu")} if vectorize is None else vectorize
        as_one = wanted and len(devices) == 1 < len(members) and why_not_stackable(self.networks) is None
        self._as_one = _AsOne(self.networks) if as_one else None
        self._asked = [in_eval_mode(network) for network in self.networks]
        self._ending = Ending() if ending is None else ending

    @property
    def run_as_one(self) -> bool:
        """Whether they do."""
        return self._as_one is not None

    def log_probs(self, group: Sequence[Batch]) -> Tensor:
        """Answers the log-probabilities ``(M, N, C)`` of each member for some batches, on the first one's device.

        Raises:
            ValueError: A member's logits are not ``(B, C)``, not finite, or not of the shape of the first's.
        """
        return self._log_probs_of(self._outputs(group))

    def mixture(self, group: Sequence[Batch], temperature: float) -> tuple[Mixture, Tensor | None]:
        """Answers the members' mixture at a temperature around them, and the evidence ``(N, C)`` of single logits.

        That is before any temperature, and None where the mixture's logits are it, or a member answers probabilities.

        Raises:
            ValueError: As :meth:`log_probs`.
        """
        outputs = self._outputs(group)
        log_probs = tempered(self._log_probs_of(outputs), temperature)
        if any(kind != "logits" for kind in self.kinds):
            return Mixture.of_passes(log_probs), None
        mean = torch.zeros_like(log_probs[0])
        for output in outputs:
            mean += two_class_logits(output).to(mean) / len(outputs)
        single = outputs[0].ndim == 1 or outputs[0].shape[-1] == 1
        return Mixture.of_passes(log_probs, mean), evidence_of(mean[:, 1:]) if single else None

    # ---------------------------------------------------------------- inside

    def _outputs(self, group: Sequence[Batch]) -> Sequence[Tensor]:
        outputs = self._outputs_as_one(group)
        return self._outputs_one_by_one(group) if outputs is None else outputs

    @torch.no_grad()
    def _outputs_one_by_one(self, group: Sequence[Batch]) -> Sequence[Tensor]:
        gathered = [Gathered() for _ in self._asked]
        for batch in group:  # all members one batch, while it is in the caches
            given = GivenBatch(batch)
            for network, kind, outputs in zip(self._asked, self.kinds, gathered, strict=True):
                own = given.on(device_of(network))
                output = _output(network, own) if self._ending.seen else probed_logits(network, own, kind)
                outputs.append(require_rows(output, batch.num_inputs, network))
            self._ending.seen = True
        return [_whole(outputs) for outputs in gathered]

    def _log_probs_of(self, outputs: Sequence[Tensor]) -> Tensor:
        answers = [
            tempered(self._log_probs(index, output), temperature)
            for index, (temperature, output) in enumerate(zip(self.temperatures, outputs, strict=True))
        ]
        require_same_shapes(answers)
        dtype = max((answer.dtype for answer in answers), key=lambda dtype: dtype.itemsize)
        return torch.stack([answer.to(answers[0].device, dtype) for answer in answers])

    def _log_probs(self, index: int, output: Tensor) -> Tensor:
        require_kind(output, self.kinds[index], self.networks[index])
        return log_probs_of(
            as_finite(f"the logits of members[{index}]", output, output.shape, like=output), self.kinds[index]
        )

    def _outputs_as_one(self, group: Sequence[Batch]) -> Sequence[Tensor] | None:
        if self._as_one is None or not self._ending.seen:
            return None
        try:
            return self._gathered_as_one(self._as_one, group).unbind(1)
        except Exception:  # the code does what vmap cannot; an error of its own comes again, one by one
            self._as_one = None
            return None

    @torch.no_grad()
    def _gathered_as_one(self, as_one: "_AsOne", group: Sequence[Batch]) -> Tensor:
        """Answers the outputs of all members for all batches, ``(B, M, ...)``."""
        outputs, network = Gathered(), self.networks[0]
        for batch in group:
            output = _output(as_one, GivenBatch(batch).on(device_of(network)))
            require_rows(output[:, 0] if output.ndim > 1 else output, batch.num_inputs, network)
            outputs.append(output)
        return _whole(outputs)


class _AsOne:
    """Models that are alike, their weights stacked; called as one of them, answers ``(B, M, ...)``."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._first = replica(networks[0])  # the weights of each stand in it for the time of a call
        self._weights = _stacked([dict(network.named_parameters()) for network in networks])
        self._buffers = _stacked([dict(network.named_buffers()) for network in networks])

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        batch = Batch(args, kwargs)

        def answer(weights: dict[str, Tensor], buffers: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
            given = iter(tensors)
            own = map_tensors(batch, lambda _: next(given))
            return logits_of(functional_call(self._first, (weights, buffers), own.args, own.kwargs))

        versions = [buffer._version for buffer in self._buffers.values()]
        with BatchedKernelsAlone():
            output = vmap(answer, in_dims=(0, 0, None), out_dims=1)(self._weights, self._buffers, tensors_of(batch))
        if versions != [buffer._version for buffer in self._buffers.values()]:
            raise RuntimeError("the model writes to its buffers, which are here copies")
        return output


class BatchedKernelsAlone(TorchFunctionMode):
    """Keeps PyTorch, in this thread, from the attention kernels that vmap would run member by member.

    That any such mode is there turns the fused path of ``nn.TransformerEncoderLayer`` off.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs one function."""
        kwargs = dict(kwargs or {})
        if func is F.multi_head_attention_forward and kwargs.get("need_weights") is False:
            # What is within a function is not seen here; with its weights, attention is the plain formula.
            return func(*args, **{**kwargs, "need_weights": True})[0], None
        if func is F.scaled_dot_product_attention and args and args[0].device.type == "cpu":
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        return func(*args, **kwargs)


def _output(call: Callable[..., Any], batch: Batch) -> Tensor:
    return logits_of(call(*batch.args, **batch.kwargs))


def _whole(outputs: Gathered) -> Tensor:
    tensor = outputs.tensor()
    assert tensor is not None
    return tensor


def require_same_shapes(answers: Sequence[Tensor]) -> None:
    """Raises where a member's probabilities are not of the shape of the first's.

    Raises:
        ValueError: They are not.
    """
    for position, answer in enumerate(answers):
        if answer.shape != answers[0].shape:
            raise ValueError(
                f"members[{position}] answers probabilities of shape {tuple(answer.shape)}, members[0] of"
                f" {tuple(answers[0].shape)}: expected (B, C) of the same inputs and classes from all members."
            )


def _stacked(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
