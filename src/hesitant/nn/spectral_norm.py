"""Bounds the operator norm of Linear and convolutional layers by projecting their weights."""

from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hesitant.nn.bound_table import BoundTable, LayerBound
from hesitant.nn.bound_warnings import GainWatch, Shrinkage, warn_of_no_bound
from hesitant.nn.bounded_layers import find_layers, selection_by_name
from hesitant.nn.compilation import run_eagerly
from hesitant.nn.initial_norms import ForgetInitialNorm
from hesitant.nn.layer_group import (
    NEVER,
    LayerGroup,
    ProjectionStep,
    bit_checksum,
    is_faster_alone,
    refuse_sharded,
    shrink,
    stack,
)
from hesitant.nn.layer_memory import LayerMemory
from hesitant.nn.layer_operator import ConvNorm, NoteInputSize, operator_of
from hesitant.nn.layer_selection import LayerSelection
from hesitant.nn.power_iteration import (
    StackedOperator,
    converged_norm,
    first_vector,
    largest_singular_value,
    power_iteration,
    recovering_iteration,
)

NormBound = float | Literal["initial"]

_WARM_UP = 30


class SpectralNormalizer(nn.Module):
    r"""Bounds how much each layer can stretch a distance: ``W <- W * min(1, bound / sigma(W))``.

    The bound is one number for all layers, kept strictly from the first projection on; or, where none is given, for
    each layer the larger of 6 and the norm that it came with, so that nothing changes until training steps have moved
    the weights. :meth:`bounds` is a table of them.

    :meth:`project` changes the weights themselves, once for each change of them, outside of autograd: they stay
    ordinary parameters under their own names, and inference costs nothing. sigma comes from a power iteration that is
    warmed up on first sight and advances by ``power_iterations`` with each projection; layers of one shape advance
    together where that is faster.

    What is bounded: every Linear and convolution (and GPT-2's ``Conv1D``) whose weight is trainable. For a convolution
    it is the norm of the operator (its stride, padding, dilation, groups) at the input size that it last saw, which a
    forward hook notes, so that a convolution is bounded from the first change of its weights after a forward (that of
    a pointwise one does not depend on it). The norm
    that it came with is taken by :meth:`measure` after the first forward. At a size that comes later it is estimated:
    multiplied by the ratio of the present norms at the two sizes. What is not bounded: frozen and parametrized weights,
    the packed weight of ``nn.MultiheadAttention``, recurrent layers, transposed convolutions, parameters of modules
    that are none of these, normalisation layers. A BatchNorm scales by gamma / std and can undo the bound of the
    convolution before it: then the bound holds for the convolution, not for the pair.
    :attr:`unbounded` lists what is left out; where nothing is bounded, a warning says so.

    A state dict holds the norms that layers came with, so that a training resumes with the bounds that it had. Weights
    that are loaded without them (those of the plain model) are new ones to come with.

    Source: Liu et al., NeurIPS 2020 (SNGP), section 3.2 and algorithm 1.

    Example:
        >>> import torch
        >>> from hesitant.nn import SpectralNormalizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = torch.nn.init.constant_(model[0].weight, 0.2)  # the norm of which is 1.6
        >>> normalizer = SpectralNormalizer(model, norm_bound=0.95)
        >>> normalizer.project()
        >>> round(normalizer.norms()["0"], 3)
        0.95

    Args:
        model: The network whose layers are bounded. It is referred to, not registered as a submodule.
        norm_bound: Largest operator norm that a layer may have; ``"initial"`` is the larger of 6 and 1.01 times the
            norm that the layer came with, for norms are known to within 1 %.
        power_iterations: Power iterations for each projection.
        warm_up_iterations: Power iterations on the first sight of a layer, or of a new input size: a cold estimate is
            off by half. 0 is the reference's, with which a layer whose weights were zero once is never bounded.
        conv_norm: ``"operator"``; ``"same_padding"``, the reference's, which takes every convolution as undilated and
            padded to the same size; ``"reshaped"``, the norm of the kernel as a matrix, off by up to a factor of the
            kernel's size.
        only: The layers to bound: the name of a module, a pattern such as ``"encoder.*.dense"``, a predicate
            ``(name, module) -> bool`` that is asked of each layer, or several of these. A name stands for all layers
            within, and need not be the whole: ``"pooler"`` finds ``bert.pooler``. None: all.
        exclude: The layers to leave as they are, told likewise; of ``only``, too.
        generator: Draws the seed of the first singular vectors; None takes 0.

    Attributes:
        only: As it was given, each predicate replaced by the names of the layers that it was true of.
        exclude: Likewise.
        unbounded: The weights that are left out, by name, each with the reason: every parameter of two or more axes
            that is not bounded, but for embeddings and Gaussian processes.

    Raises:
        ValueError: An argument is out of its range, or a part of ``only`` or ``exclude`` matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        norm_bound: NormBound = "initial",
        *,
        power_iterations: int = 1,
        warm_up_iterations: int = 30,
        conv_norm: ConvNorm = "operator",
        only: LayerSelection | None = None,
        exclude: LayerSelection = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not _is_bound(norm_bound):
            raise ValueError(
                f"norm_bound={norm_bound!r} must be a positive number or 'initial' (in SNGP, None bounds nothing)."
            )
        if power_iterations < 1 or warm_up_iterations < 0:
            raise ValueError(
                f"power_iterations={power_iterations} must be at least 1 and warm_up_iterations={warm_up_iterations} at"
                " least 0."
            )
        if conv_norm not in ("operator", "same_padding", "reshaped"):
            raise ValueError(f"conv_norm={conv_norm!r} is unknown: expected 'operator', 'same_padding' or 'reshaped'.")
        self.norm_bound = norm_bound
        self.power_iterations = power_iterations
        self.warm_up_iterations = warm_up_iterations
        self.conv_norm = conv_norm
        self._seed = 0 if generator is None else _seed_from(generator)  # not kept: no process can send a generator
        self._layers, self.unbounded = find_layers(model, only, exclude)
        self.only = None if only is None else selection_by_name(model, only)
        self.exclude = selection_by_name(model, exclude)
        if not self._layers and set(self.unbounded.values()) - {"excluded"}:
            warn_of_no_bound(self.unbounded)
        self._memory = LayerMemory()
        self._groups: list[LayerGroup] = []
        self._grouped_as: Any = None
        self._sizeless: list[str] = []  # convolutions that have seen no input
        self._gain = GainWatch()
        for name, layer in self._layers.items():
            layer.register_load_state_dict_post_hook(ForgetInitialNorm(self._memory.initial, name))
        for name, layer in self._layers.items():
            if self._operator(name) is None:
                layer.register_forward_pre_hook(NoteInputSize(self._memory.input_sizes, name), with_kwargs=True)

    @run_eagerly
    @torch.no_grad()
    def project(self, *, num_iterations: int | None = None, force: bool = False) -> None:
        """Projects the weights that moved since the last call, in place, and no others: a graph may hold those.

        Args:
            num_iterations: Power iterations, instead of ``power_iterations``.
            force: Whether layers whose weights have not moved advance too, and all norms are taken to within 1 %.

        Raises:
            RuntimeError: A weight is sharded (FSDP, ZeRO-3), so that no worker can see its norm.
        """
        self._regroup()
        iterations = self.power_iterations if num_iterations is None else num_iterations
        with torch.autocast(self._device_type(), enabled=False):
            steps = [(group, self._advance(group, iterations, force)) for group in self._groups]
            if not isinstance(self.norm_bound, str) and self._gain.waits_for(self._layers):
                self._add_up(self.norm_bound, [(group, step) for group, step in steps if step is not None])
            for group, step in steps:
                if step is not None:
                    shrink(group, step)
            for name in self._sizeless:
                self._memory.checksums[name] = bit_checksum(stack([cast(nn.Parameter, self._layers[name].weight)]))[0]

    @run_eagerly
    @torch.no_grad()
    def measure(self) -> None:
        """Takes the norms that convolutions came with, where they are not known at the sizes of their inputs yet.

        To be called after a forward and before the optimizer's step: the forward shows the sizes, the step moves the
        weights. :class:`~hesitant.SNGP` does so. A bound that is given needs none.
        """
        if self.norm_bound == "initial" and not all(
            self._memory.initial.knows(*seen) for seen in self._memory.input_sizes.items()
        ):
            self._regroup()

    def bounds(self) -> BoundTable:
        """Answers a table of all layers, those that are not bounded last: their norms, to rounding, and bounds."""
        return self._table(self._exact_norms())

    def norms(self) -> dict[str, float]:
        """Answers the operator norm of each bounded layer, to rounding.

        Raises:
            ValueError: A convolution has not seen an input yet.
        """
        unseen = [name for name in self._layers if self._operator(name) is None]
        if unseen:
            raise ValueError(
                f"norms: the convolutions {unseen} have not seen an input, and their norm depends on its size: call the"
                " model on one first."
            )
        norms = self._exact_norms()
        return {name: norms[name] for name in self._layers if name in norms}

    def vectors(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Answers the singular vectors (u, v) of each layer, as the last power iteration left them."""
        self._regroup()
        return {
            name: (group.u[i], None if group.v is None else group.v[i])
            for group in self._groups
            for i, name in enumerate(group.names)
        }

    def set_vectors(self, name: str, u: Tensor) -> None:
        """Sets the left singular vector, ``(out,)`` or ``(Cout, H, W)``, from which a layer's power iteration goes on.

        Raises:
            ValueError: The layer is not known, or u has the wrong shape.
        """
        self._regroup()
        for group in self._groups:
            if name in group.names:
                if u.shape != group.u.shape[1:]:
                    raise ValueError(f"u has shape {tuple(u.shape)}: {name!r} expects {tuple(group.u.shape[1:])}.")
                group.u[group.names.index(name)] = u
                return
        raise ValueError(f"name={name!r} is no bounded layer that has seen an input; there are {list(self._layers)}.")

    # ---------------------------------------------------------------- inside

    @torch.no_grad()
    def _exact_norms(self) -> dict[str, float]:
        answer: dict[str, float] = {}
        self._regroup()
        with torch.autocast(self._device_type(), enabled=False):
            for group in self._groups:
                weight = stack(group.weights).double()
                sigma = largest_singular_value(group.operator, weight, group.u.double())
                answer.update(zip(group.names, sigma.tolist(), strict=True))
        return answer

    def _table(self, norms: dict[str, float]) -> BoundTable:
        bounds: dict[str, float] = {}
        for group in self._groups:
            bounds |= zip(group.names, group.bound.tolist(), strict=True)
        given = None if isinstance(self.norm_bound, str) else self.norm_bound
        lines = []
        for name, layer in self._layers.items():
            if not cast(nn.Parameter, layer.weight).requires_grad:
                lines.append(LayerBound(name, None, None, "frozen"))
            else:
                note = "" if name in bounds else "no input seen" if self._operator(name) is None else "not measured"
                lines.append(LayerBound(name, norms.get(name), given or bounds.get(name), note))
        return BoundTable([*lines, *(LayerBound(name, None, None, why) for name, why in self.unbounded.items())])

    def _regroup(self) -> None:
        """Groups the layers anew where a weight was replaced, moved, frozen, or saw an input of another size."""
        for name in [name for name, layer in self._layers.items() if not isinstance(layer.weight, nn.Parameter)]:
            self.unbounded[name] = "parametrized weight"
            del self._layers[name]
        weights = {name: cast(nn.Parameter, layer.weight) for name, layer in self._layers.items()}
        lazy = {name for name, weight in weights.items() if is_lazy(weight)}
        grouped_as: list[Any] = [
            (
                id(weight),
                weight.dtype,
                weight.device,
                weight.requires_grad,
                name in lazy,
                self._memory.input_sizes.get(name),
            )
            for name, weight in weights.items()
        ]
        grouped_as.append((self.norm_bound, self._memory.initial.revision))
        if grouped_as == self._grouped_as:
            return
        self._memory.keep(self._groups, self._layers)
        by_shape: dict[Any, list[str]] = {}
        self._sizeless = []
        for name, weight in weights.items():
            if name in lazy:
                continue
            refuse_sharded(name, weight, self._layers[name])
            operator = self._operator(name)
            if operator is None:
                self._sizeless.append(name)
            elif weight.requires_grad:
                alone = name if is_faster_alone(weight) else None
                by_shape.setdefault((operator, weight.shape, weight.dtype, weight.device, alone), []).append(name)
        self._groups = [self._make_group(key[0], names) for key, names in by_shape.items()]
        self._grouped_as = grouped_as

    def _make_group(self, operator: StackedOperator, names: list[str]) -> LayerGroup:
        parameters = [cast(nn.Parameter, self._layers[name].weight) for name in names]
        with torch.no_grad():
            weight = stack(parameters)
            shape = operator.output_shape(weight)
            known = [self._memory.vectors.get(name, {}).get(shape) for name in names]
            # Known ones as they are: to normalise them again would change their bits.
            u = torch.stack(
                [
                    (first_vector(self._seed, name, shape) if vector is None else vector).to(weight)
                    for name, vector in zip(names, known, strict=True)
                ]
            )
            never = torch.tensor(NEVER)
            checksum = torch.stack([self._memory.checksums.get(name, never).to(weight.device) for name in names])
            group = LayerGroup(names, parameters, operator, u, checksum, bound=u.new_zeros(len(names)))
            size = self._memory.size(names[0])
            with torch.autocast(weight.device.type, enabled=False):
                if self.norm_bound == "initial" and not all(self._memory.initial.knows(name, size) for name in names):
                    self._take_initial_norms(group, weight, size)
                elif self.warm_up_iterations and any(vector is None for vector in known):
                    group.sigma, group.u, group.v = self._iterate(operator, weight, u, self.warm_up_iterations)
            given = None if isinstance(self.norm_bound, str) else self.norm_bound
            group.bound = u.new_tensor([given or self._memory.initial.bound(name, size) for name in names])
        return group

    def _take_initial_norms(self, group: LayerGroup, weight: Tensor, size: tuple[int, ...]) -> None:
        iterations = max(self.warm_up_iterations, _WARM_UP)
        group.sigma, group.u, group.v = converged_norm(group.operator, weight, group.u, iterations)
        now = bit_checksum(weight)
        for i, (name, sigma) in enumerate(zip(group.names, group.sigma.tolist(), strict=True)):
            first = self._memory.initial.first(name)
            if first is None:
                self._memory.initial.note(name, size, sigma)
                group.checksum[i] = now[i]  # as they are, weights that came with it are within the bound
            elif not self._memory.initial.knows(name, size):
                # The weights may have moved since; how much more a size lets them stretch has hardly.
                there = self._operator(name, first[0])
                assert there is not None
                one = weight[i : i + 1]
                start = first_vector(self._seed, name, there.output_shape(one)).to(one).unsqueeze(0)
                before = float(converged_norm(there, one, start, iterations)[0])
                self._memory.initial.note(name, size, first[1] * sigma / before if before else first[1])

    def _operator(self, name: str, size: tuple[int, ...] | None = None) -> StackedOperator | None:
        """Answers the operator of a layer at its latest size unless one is given; None if it has seen no input."""
        return operator_of(self._layers[name], size or self._memory.input_sizes.get(name), self.conv_norm)

    def _iterate(
        self, operator: StackedOperator, weight: Tensor, u: Tensor, num_iterations: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        iterate = recovering_iteration if self.warm_up_iterations else power_iteration
        return iterate(operator, weight, u, num_iterations)

    def _advance(self, group: LayerGroup, iterations: int, force: bool) -> ProjectionStep | None:
        """Answers the factor that each weight is to be multiplied by; None: nothing moved."""
        stacked = stack(group.weights)
        checksum = bit_checksum(stacked)
        moved = torch.ones_like(checksum, dtype=torch.bool) if force else checksum != group.checksum
        # Asking costs nothing on a CPU; on a GPU it would make the host wait, so that there all advance, masked.
        num_moved = int(moved.sum()) if stacked.device.type == "cpu" else None
        if num_moved == 0:
            return None
        if force and self.warm_up_iterations:
            group.sigma, u, group.v = converged_norm(group.operator, stacked, group.u, iterations)
        else:
            group.sigma, u, group.v = self._iterate(group.operator, stacked, group.u, iterations)
        scale = (group.sigma.reciprocal() * group.bound).clamp(max=1)
        if num_moved != len(group.names):
            scale = torch.where(moved, scale, torch.ones_like(scale))
            u = torch.where(moved.view(-1, *[1] * (u.ndim - 1)), u, group.u)
        group.u = u
        return ProjectionStep(stacked, checksum, moved, scale)

    def _add_up(self, norm_bound: float, steps: list[tuple[LayerGroup, ProjectionStep]]) -> None:
        shrinkages: dict[str, Shrinkage] = {}
        for group, step in steps:
            if self._gain.waits_for(group.names):
                measured = zip(group.names, group.sigma.tolist(), step.scale.tolist(), step.moved.tolist(), strict=True)
                shrinkages |= {name: Shrinkage(sigma, factor) for name, sigma, factor, moved in measured if moved}
        self._gain.add(norm_bound, shrinkages, len(self._sizeless))

    def _device_type(self) -> str:
        return self._groups[0].u.device.type if self._groups else "cpu"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpectralNormalizer":
        # The vectors follow the weights, which may be moved after this: the next projection groups them anew.
        self._memory.keep(self._groups, self._layers)
        self._groups, self._grouped_as = [], None
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._memory.keep(self._groups, self._layers)
        for name, tensor in self._memory.tensors().items():
            destination[f"{prefix}{name}"] = tensor

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = self._memory.load(state_dict, prefix)
        self._groups, self._grouped_as = [], None
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def extra_repr(self) -> str:
        """Answers the module's lines in ``print(model)``: the table of :meth:`bounds`, with norms as last estimated."""
        last = {
            name: min(sigma, bound)
            for group in self._groups
            for name, sigma, bound in zip(group.names, group.sigma.tolist(), group.bound.tolist(), strict=False)
        }
        return f"norm_bound={self.norm_bound!r}, conv_norm={self.conv_norm!r}\n{self._table(last)}"


def _is_bound(norm_bound: object) -> bool:
    return norm_bound == "initial" or (isinstance(norm_bound, Real) and 0 < float(norm_bound) < float("inf"))


def _seed_from(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
