"""The calibration data as `calibrate` holds them: a random sample of bounded size of what a method answers."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from hesitant.evaluation.calibration.components import Components
from hesitant.inputs import Batch

BYTES_HELD: Final = 2**29
NUMBERS_ASKED: Final = 2**24  # 64 MiB in float32
NUMBERS_AT_ONCE: Final = 2**17  # with what is computed of them in float64, they stay in a processor's cache

_BLOCK = 2**24  # numbers; small ones that stay, between large ones that go, would fragment the heap
_BESIDE = 17  # bytes an input: its target, its key, and whether the target was possible
_LEAST_LOG = -104.0  # below the logarithm of the least positive float32


class Held:
    """The components of calibration data; of too many, a uniform random sample without replacement.

    Each input draws a key, and those with the least keys are held: every input has the same chance, wherever it stands
    and whatever the batches are, and the inputs chosen follow from the seed and the number of inputs alone. One that
    has no place is not asked of the model: of N inputs and room for K about ``K (1 + log(N / K))`` are.

    What is held never takes more bytes than the limit, unless a single input does. How many inputs that is depends on
    the numbers of an input alone, S distributions over C classes (twice as many with a variance).

    Attributes:
        num_available: How many inputs there were.
    """

    def __init__(self, seed: int = 0, limit: int = BYTES_HELD) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._limit = limit
        self._room: _Room | None = None
        self._blocks: list[_Block] = []
        self._used = 0
        self._lowest, self._highest = math.inf, -math.inf
        self.num_available = 0

    @property
    def num_inputs(self) -> int:
        """How many inputs are held."""
        return self._used

    @property
    def num_impossible(self) -> int:
        """How many of the targets held have the probability 0."""
        return sum(int(block.impossible.sum()) for block in self._blocks)

    @property
    def only_class(self) -> int | None:
        """The class of all inputs that there were, held or not; None where they have several."""
        return int(self._lowest) if self._lowest == self._highest else None

    @property
    def several(self) -> bool:
        """Whether an input has several distributions."""
        return len(self._blocks[0].components.weights) > 1

    @property
    def num_bytes(self) -> int:
        """How much memory what is held takes."""
        return sum(block.num_bytes for block in self._blocks)

    def gather(self, batches: Iterable[Batch], ask: Callable[[Batch, int], Components]) -> None:
        """Adds what a method answers to batches, asked for at most ``NUMBERS_ASKED`` numbers at a time.

        Args:
            batches: With their targets.
            ask: Answers the components of a batch, or of some inputs of it; is given it, and how often it was asked
                before.

        Raises:
            ValueError: A batch has no targets, a logit is not a number, or a target is no class.
        """
        asked = 0
        for batch in batches:
            if batch.targets is None:
                raise ValueError("data has no targets: expected (inputs, targets), a tuple, or a dict with 'labels'.")
            rows = len(batch.targets) if batch.targets.ndim else 1
            if rows == 0:
                continue
            parts = batch.is_divisible
            if self._room is None:  # two rows show how many numbers an input has
                few = torch.arange(min(2, rows))
                self._room = _Room.of(ask(batch.take(few) if parts else batch, asked), self._limit)
            keys = self._keys(rows)
            wanted = self._wanted(keys)
            for chosen in wanted.split(self._room.asked if parts else rows):
                if len(chosen) == 0:  # the one part of none
                    continue
                components = ask(batch.take(chosen) if parts else batch, asked)
                self._add(components if parts else _of_rows(components, chosen), keys[chosen])
                asked += 1
            self._note(as_classes(batch.targets, rows, self._room.num_classes))

    def append(self, components: Components) -> None:
        """Adds components of a batch.

        Raises:
            ValueError: They have no targets, a logit is not a number, or a target is no class.
        """
        if components.targets is None:
            raise ValueError("components have no targets: expected those of a batch with targets.")
        if self._room is None:
            self._room = _Room.of(components, self._limit)
        keys = self._keys(components.logits.shape[1])
        chosen = self._wanted(keys)
        self._note(as_classes(components.targets, components.logits.shape[1], self._room.num_classes))
        self._add(_of_rows(components, chosen), keys[chosen])

    def __iter__(self) -> Iterator[Components]:
        """Gives what is held, a few inputs at a time."""
        left = self._used
        for block in self._blocks:
            rows = min(left, self._rows)
            left -= rows
            for start in range(0, rows, self._at_once):
                yield block.components.rows(slice(start, min(start + self._at_once, rows)))

    def fewer(self, size: int) -> Iterator[Components]:
        """Gives a uniform random sample of so many of the inputs held, a few at a time."""
        keys = self._all_keys()
        chosen = torch.zeros(len(keys), dtype=torch.bool)
        chosen[keys.topk(min(size, len(keys)), largest=False).indices] = True
        for block, mask in zip(self._blocks, chosen.split(self._rows), strict=True):
            for rows in mask.nonzero().squeeze(1).split(self._at_once):
                if len(rows):
                    yield block.components.rows(rows)

    # ---------------------------------------------------------------- inside

    @property
    def _rows(self) -> int:
        assert self._room is not None
        return self._room.block

    @property
    def _at_once(self) -> int:
        assert self._room is not None
        return self._room.at_once

    def _all_keys(self) -> Tensor:
        return torch.cat([torch.empty(0, dtype=torch.float64), *(block.keys for block in self._blocks)])[: self._used]

    def _keys(self, num_inputs: int) -> Tensor:
        self.num_available += num_inputs
        return torch.rand(num_inputs, dtype=torch.float64, generator=self._generator)

    def _wanted(self, keys: Tensor) -> Tensor:
        """Answers which of the next inputs, by their keys, have a place, in ascending order."""
        assert self._room is not None
        if self._used + len(keys) <= self._room.inputs:
            return torch.arange(len(keys))
        least = torch.cat([self._all_keys(), keys]).topk(self._room.inputs, largest=False).indices
        return (least[least >= self._used] - self._used).sort().values

    def _add(self, components: Components, keys: Tensor) -> None:
        """Gives each of these inputs a place: a free one, or that of the greatest key."""
        assert self._room is not None
        if len(keys) == 0:
            return
        components, impossible = _finite(components)
        free = min(self._room.inputs - self._used, len(keys))
        places = torch.arange(self._used, self._used + free)
        if free < len(keys):
            taken = self._all_keys().topk(len(keys) - free).indices
            places = torch.cat([places, taken])
        self._used += free
        number = places // self._rows
        for index in number.unique().tolist():
            if index == len(self._blocks):
                rows = min(self._rows, self._room.inputs - index * self._rows)
                self._blocks.append(_Block.like(components, rows))
            here = (number == index).nonzero().squeeze(1)
            self._blocks[index].write(places[here] - index * self._rows, _of_rows(components, here), impossible[here])
            self._blocks[index].keys[places[here] - index * self._rows] = keys[here]

    def _note(self, targets: Tensor) -> None:
        if len(targets):
            self._lowest = min(self._lowest, int(targets.min()))
            self._highest = max(self._highest, int(targets.max()))


class _Room(NamedTuple):
    """How much room there is, by the numbers of an input.

    Attributes:
        num_classes: C.
        inputs: That can be held.
        block: Of them in one block.
        at_once: Of them to compute with at once.
        asked: To ask of the model at once.
    """

    num_classes: int
    inputs: int
    block: int
    at_once: int
    asked: int

    @classmethod
    def of(cls, components: Components, limit: int) -> "_Room":
        num_samples, _, num_classes = components.logits.shape
        numbers = max(1, num_samples * num_classes)
        tensors = [components.logits] if components.variance is None else [components.logits, components.variance]
        inputs = max(1, limit // (numbers * sum(tensor.element_size() for tensor in tensors) + _BESIDE))
        block, at_once, asked = (max(1, bound // numbers) for bound in (_BLOCK, NUMBERS_AT_ONCE, NUMBERS_ASKED))
        return cls(num_classes, inputs, min(inputs, block), at_once, asked)


class _Block(NamedTuple):
    """Room for the components of some inputs, with the keys of those that are there."""

    components: Components
    impossible: Tensor
    keys: Tensor

    @classmethod
    def like(cls, components: Components, rows: int) -> "_Block":
        num_samples, _, num_classes = components.logits.shape
        shape = (rows, num_samples, num_classes)  # an input's numbers lie together, for they are read together
        variance = None if components.variance is None else components.variance.new_empty(shape).transpose(0, 1)
        room = components._replace(
            logits=components.logits.new_empty(shape).transpose(0, 1),  # (S, R, C)
            variance=variance,
            targets=torch.zeros(rows, dtype=torch.long),
        )
        return cls(room, torch.zeros(rows, dtype=torch.bool), torch.empty(rows, dtype=torch.float64))

    @property
    def num_bytes(self) -> int:
        components = self.components
        tensors = (components.logits, components.variance, components.targets, self.impossible, self.keys)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def write(self, places: Tensor, components: Components, impossible: Tensor) -> None:
        self.components.logits[:, places] = components.logits
        if self.components.variance is not None:
            assert components.variance is not None
            self.components.variance[:, places] = components.variance
        assert self.components.targets is not None
        assert components.targets is not None
        self.components.targets[places] = components.targets
        self.impossible[places] = impossible


def as_classes(targets: Tensor, num_inputs: int, num_classes: int) -> Tensor:
    """Answers one class index an input, ``(B,)``.

    Raises:
        ValueError: The targets are something else, or no classes of the model's.
    """
    if targets.numel() != num_inputs or (targets.is_floating_point() and not bool((targets == targets.round()).all())):
        raise ValueError(
            f"targets of a batch have shape {tuple(targets.shape)} and dtype {targets.dtype}: expected one class index"
            f" for each of its {num_inputs} inputs."
        )
    targets = targets.reshape(-1).long()
    if bool(((targets < 0) | (targets >= num_classes)).any()):
        raise ValueError(
            f"targets lie in [{int(targets.min())}, {int(targets.max())}]: expected 0 to {num_classes - 1}, as the"
            f" model has {num_classes} classes."
        )
    return targets


def _finite(components: Components) -> tuple[Components, Tensor]:
    """Answers components with finite logits and targets that are classes, and which targets had the probability 0.

    Raises:
        ValueError: A logit is not a number, or a target is no class.
    """
    logits, targets = components.logits, components.targets
    assert targets is not None
    least, greatest = (float(bound) for bound in logits.aminmax())  # NaN where a logit is NaN
    if not greatest < math.inf:
        raise ValueError("the model answered NaN or Inf: look for the input or weight that made it.")
    targets = as_classes(targets, logits.shape[1], logits.shape[-1])
    of_target = logits.gather(-1, targets.view(1, -1, 1).expand(len(logits), -1, 1))
    impossible = (of_target == -math.inf).all(0).squeeze(-1)
    # A probability that rounds to 0 has a logarithm all the same.
    if least == -math.inf:
        logits = logits.masked_fill(logits == -math.inf, _LEAST_LOG)
    if logits.dtype == torch.float64:  # their squares must be finite
        logits = logits.clamp(min=torch.finfo(torch.float32).min)
    return components._replace(logits=logits, targets=targets), impossible


def _of_rows(components: Components, chosen: Tensor) -> Components:
    """Answers the components of some inputs, without a copy where these are all."""
    return components if len(chosen) == components.logits.shape[1] else components.rows(chosen)
