"""Bounds the operator norm of Linear and convolutional layers by projecting their weights."""

import hashlib
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from hesitant.nn.bounded_layers import find_layers
from hesitant.nn.compilation import run_eagerly
from hesitant.nn.layer_group import NEVER, LayerGroup, ProjectionStep, bit_checksum, refuse_sharded, shrink, stack
from hesitant.nn.power_iteration import (
    ConvOperator,
    MatrixOperator,
    PaddingMode,
    StackedOperator,
    largest_singular_value,
    normalize,
    power_iteration,
    same_padding,
)

ConvNorm = Literal["operator", "same_padding", "reshaped"]

_CRUSHED = 3.0  # a layer that must shrink by more than this is reported first; fresh square layers have a norm near 2
_FORCED_STEPS = 20  # of the Lanczos iteration in a forced projection
_SIZES_KEPT = 8  # of the inputs of a convolution, so that inputs of any length do not fill the memory


class SpectralBoundWarning(UserWarning):
    """The bound is about to shrink weights to less than a third, or holds for none at all."""


class SpectralNormalizer(nn.Module):
    r"""Bounds how much each layer can stretch a distance: ``W <- W * min(1, norm_bound / sigma(W))``.

    :meth:`project` changes the weights themselves, once for each change of them, outside of autograd: they stay
    ordinary parameters under their own names, and inference costs nothing. sigma comes from a power iteration that is
    warmed up on first sight and advances by ``power_iterations`` with each projection; layers of one shape advance
    together.

    What is bounded: every Linear and convolution (and GPT-2's ``Conv1D``) whose weight is trainable. For a convolution
    it is the norm of the operator (its stride, padding, dilation, groups) at the input size that it last saw, which a
    forward hook notes, so that a convolution is bounded from the first change of its weights after a forward. What is
    not: frozen and parametrized weights, the packed weight of ``nn.MultiheadAttention``, recurrent layers, transposed
    convolutions, parameters of modules that are none of these, normalisation layers. A BatchNorm scales by gamma / std
    and can undo the bound of the convolution before it: then the bound holds for the convolution, not for the pair.
    :attr:`unbounded` lists what is left out; where nothing is bounded, a warning says so.

    Source: Liu et al., NeurIPS 2020 (SNGP), section 3.2 and algorithm 1.

    Example:
        >>> import torch
        >>> from hesitant.nn import SpectralNormalizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = torch.nn.init.constant_(model[0].weight, 0.25)  # the norm of which is 2
        >>> normalizer = SpectralNormalizer(model, norm_bound=0.95)
        >>> normalizer.project()
        >>> round(normalizer.norms()["0"], 3)
        0.95

    Args:
        model: The network whose layers are bounded. It is referred to, not registered as a submodule.
        norm_bound: Largest operator norm that a layer may have.
        power_iterations: Power iterations for each projection.
        warm_up_iterations: Power iterations on the first sight of a layer, or of a new input size: a cold estimate is
            off by half. 0 is the reference's, with which a layer whose weights were zero once is never bounded.
        conv_norm: ``"operator"``; ``"same_padding"``, the reference's, which takes every convolution as undilated and
            padded to the same size; ``"reshaped"``, the norm of the kernel as a matrix, off by up to a factor of the
            kernel's size.
        exclude: Names of layers (or of modules around them) that are left as they are.
        generator: Draws the seed of the first singular vectors; None takes 0.

    Attributes:
        unbounded: The weights that are left out, by name, each with the reason: every parameter of two or more axes
            that is not bounded, but for embeddings and Gaussian processes.

    Raises:
        ValueError: An argument is out of its range, or a name in ``exclude`` is not in the model.
    """

    def __init__(
        self,
        model: nn.Module,
        norm_bound: float = 0.95,
        *,
        power_iterations: int = 1,
        warm_up_iterations: int = 30,
        conv_norm: ConvNorm = "operator",
        exclude: Collection[str] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < norm_bound < float("inf"):
            raise ValueError(f"norm_bound={norm_bound} must be a positive number (in SNGP, None bounds nothing).")
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
        self._layers, self.unbounded = find_layers(model, exclude)
        if not self._layers and set(self.unbounded.values()) - {"excluded"}:
            _warn_of_no_bound(self.unbounded)
        self._input_sizes: dict[str, tuple[int, ...]] = {}
        self._vectors: dict[str, dict[tuple[int, ...], Tensor]] = {}  # by layer and output size, the latest last
        self._checksums: dict[str, Tensor] = {}
        self._groups: list[LayerGroup] = []
        self._grouped_as: Any = None
        self._sizeless: list[str] = []  # convolutions that have seen no input
        if conv_norm != "reshaped":
            for name, layer in self._layers.items():
                if isinstance(layer, _ConvNd):
                    layer.register_forward_pre_hook(_NoteInputSize(self._input_sizes, name), with_kwargs=True)

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
            self._report_crushed([(group, step.scale) for group, step in steps if step is not None and group.fresh])
            for group, step in steps:
                if step is not None:
                    shrink(group, step)
            for name in self._sizeless:
                self._checksums[name] = bit_checksum(stack([cast(nn.Parameter, self._layers[name].weight)]))[0]

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
        answer: dict[str, float] = {}
        with torch.no_grad(), torch.autocast(self._device_type(), enabled=False):
            self._regroup()
            for group in self._groups:
                weight = stack(group.weights).double()
                sigma = largest_singular_value(group.operator, weight, group.u.double())
                answer.update(zip(group.names, sigma.tolist(), strict=True))
        return {name: answer[name] for name in self._layers if name in answer}

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

    def _regroup(self) -> None:
        """Groups the layers anew where a weight was replaced, moved, frozen, or saw an input of another size."""
        for name in [name for name, layer in self._layers.items() if not isinstance(layer.weight, nn.Parameter)]:
            self.unbounded[name] = "parametrized weight"
            del self._layers[name]
        weights = {name: cast(nn.Parameter, layer.weight) for name, layer in self._layers.items()}
        lazy = {name for name, weight in weights.items() if is_lazy(weight)}
        grouped_as = [
            (id(weight), weight.dtype, weight.device, weight.requires_grad, name in lazy, self._input_sizes.get(name))
            for name, weight in weights.items()
        ]
        if grouped_as == self._grouped_as:
            return
        self._keep_vectors()
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
                by_shape.setdefault((operator, weight.shape, weight.dtype, weight.device), []).append(name)
        self._groups = [self._make_group(key[0], names) for key, names in by_shape.items()]
        self._grouped_as = grouped_as

    def _make_group(self, operator: StackedOperator, names: list[str]) -> LayerGroup:
        parameters = [cast(nn.Parameter, self._layers[name].weight) for name in names]
        with torch.no_grad():
            weight = stack(parameters)
            shape = operator.output_shape(weight)
            known = [self._vectors.get(name, {}).get(shape) for name in names]
            # Known ones as they are: to normalise them again would change their bits.
            u = torch.stack(
                [
                    (self._draw(name, shape) if vector is None else vector).to(weight)
                    for name, vector in zip(names, known, strict=True)
                ]
            )
            never = torch.tensor(NEVER)
            checksum = torch.stack([self._checksums.get(name, never).to(weight.device) for name in names])
            group = LayerGroup(names, parameters, operator, u, checksum)
            if self.warm_up_iterations and any(vector is None for vector in known):
                with torch.autocast(weight.device.type, enabled=False):
                    group.sigma, group.u, group.v = self._iterate(operator, weight, u, self.warm_up_iterations)
        return group

    def _iterate(
        self, operator: StackedOperator, weight: Tensor, u: Tensor, num_iterations: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        sigma, after, v = power_iteration(operator, weight, u, num_iterations)
        if self.warm_up_iterations:
            # Zero weights, as some layers begin with, would leave u zero, from where it never comes back.
            after = torch.where((sigma > 1e-6).view(-1, *[1] * (u.ndim - 1)), after, u)
        return sigma, after, v

    def _draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        digest = hashlib.blake2b(f"{self._seed} {name} {shape}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        return normalize(torch.randn(1, *shape, generator=generator))[0]

    def _operator(self, name: str) -> StackedOperator | None:
        layer = self._layers[name]
        if not isinstance(layer, _ConvNd) or self.conv_norm == "reshaped":
            return MatrixOperator()
        size = self._input_sizes.get(name)
        if size is None:
            return None
        stride, dilation = tuple(layer.stride), tuple(layer.dilation)
        mode: PaddingMode = layer.padding_mode
        if self.conv_norm == "same_padding":
            dilation, mode = (1,) * len(size), "zeros"
            padding = same_padding(size, tuple(layer.kernel_size), stride)
        else:
            padding = tuple(layer._reversed_padding_repeated_twice)
        return ConvOperator(layer.in_channels, size, stride, dilation, layer.groups, padding, mode)

    def _advance(self, group: LayerGroup, iterations: int, force: bool) -> ProjectionStep | None:
        """Answers the factor that each weight is to be multiplied by; None: nothing moved."""
        stacked = stack(group.weights)
        checksum = bit_checksum(stacked)
        moved = torch.ones_like(checksum, dtype=torch.bool) if force else checksum != group.checksum
        # Asking costs nothing on a CPU; on a GPU it would make the host wait, so that there all advance, masked.
        num_moved = int(moved.sum()) if stacked.device.type == "cpu" else None
        if num_moved == 0:
            return None
        start = group.u
        if force and self.warm_up_iterations:
            # A direction that has outgrown the one that u has converged to may be all but absent from u.
            noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
            start = normalize(start + normalize(noise.to(start)))
        group.sigma, u, group.v = self._iterate(group.operator, stacked, start, iterations)
        if force and self.warm_up_iterations:
            # Where many norms lie close together the power iteration crawls; one layer at a time, to spare memory.
            exact = [
                largest_singular_value(group.operator, stacked[i : i + 1], u[i : i + 1], _FORCED_STEPS)
                for i in range(len(group.names))
            ]
            group.sigma = torch.maximum(group.sigma, torch.cat(exact))
        scale = (self.norm_bound / group.sigma).clamp(max=1)
        if num_moved != len(group.names):
            scale = torch.where(moved, scale, torch.ones_like(scale))
            u = torch.where(moved.view(-1, *[1] * (u.ndim - 1)), u, group.u)
        group.u = u
        return ProjectionStep(stacked, checksum, scale)

    def _report_crushed(self, fresh: list[tuple[LayerGroup, Tensor]]) -> None:
        """Warns of the layers that their first projection is about to shrink to less than a third."""
        crushed: list[str] = []
        for group, scale in fresh:
            group.fresh = False
            measured = zip(group.names, group.sigma.tolist(), scale.tolist(), strict=True)
            crushed += [f"{name} has norm {sigma:.3g}" for name, sigma, factor in measured if factor * _CRUSHED < 1]
        if crushed:
            warnings.warn(
                f"norm_bound={self.norm_bound} is about to shrink {len(crushed)} layers to less than a third, which"
                f" undoes much of what pretrained weights know: {'; '.join(crushed)}. Choose a larger norm_bound, or"
                " exclude these layers.",
                SpectralBoundWarning,
                stacklevel=4,
            )

    def _keep_vectors(self) -> None:
        for group in self._groups:
            shape = tuple(group.u.shape[1:])
            for name, weight, u, checksum in zip(group.names, group.weights, group.u, group.checksum, strict=True):
                if name not in self._layers or self._layers[name].weight is not weight:
                    self._vectors.pop(name, None)  # another weight stands there: its vectors are warmed up anew
                    self._checksums.pop(name, None)
                    continue
                known = self._vectors.setdefault(name, {})
                known.pop(shape, None)
                known[shape] = u.clone()
                if len(known) > _SIZES_KEPT:
                    known.pop(next(iter(known)))
                self._checksums[name] = checksum.clone()

    def _device_type(self) -> str:
        return self._groups[0].u.device.type if self._groups else "cpu"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpectralNormalizer":
        # The vectors follow the weights, which may be moved after this: the next projection groups them anew.
        self._keep_vectors()
        self._groups, self._grouped_as = [], None
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._keep_vectors()
        for name, known in self._vectors.items():
            destination[f"{prefix}u.{name}"] = next(reversed(known.values()))
        for name, checksum in self._checksums.items():
            destination[f"{prefix}checksum.{name}"] = checksum
        for name, size in self._input_sizes.items():
            destination[f"{prefix}input_size.{name}"] = torch.tensor(size)

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
        rest: dict[str, Any] = {}
        for key, value in state_dict.items():
            kind, _, name = key.removeprefix(prefix).partition(".") if key.startswith(prefix) else ("", "", "")
            if kind == "u":
                self._vectors[name] = {tuple(value.shape): value.clone()}
            elif kind == "checksum":
                self._checksums[name] = value.clone()
            elif kind == "input_size":
                self._input_sizes[name] = tuple(value.tolist())
            else:
                rest[key] = value
        self._groups, self._grouped_as = [], None
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def extra_repr(self) -> str:
        """Answers the module's line in ``print(model)``."""
        return f"{len(self._layers)} layers, norm_bound={self.norm_bound}, conv_norm={self.conv_norm!r}"


def _seed_from(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _warn_of_no_bound(unbounded: dict[str, str]) -> None:
    first = "; ".join(f"{name}: {reason}" for name, reason in list(unbounded.items())[:4])
    more = f"; and {len(unbounded) - 4} more" if len(unbounded) > 4 else ""
    warnings.warn(
        f"norm_bound bounds no weight of this model ({first}{more}): its features need not keep distances, so that the"
        " uncertainty may not grow with the distance to the training data. Pass norm_bound=None to say that this is"
        " meant.",
        SpectralBoundWarning,
        stacklevel=4,
    )


@dataclass
class _NoteInputSize:
    """A forward hook that notes the size of a convolution's input; noting it twice changes nothing."""

    sizes: dict[str, tuple[int, ...]]
    name: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        self.sizes[self.name] = tuple(x.shape[2 - (x.ndim < cast(Tensor, module.weight).ndim) :])
