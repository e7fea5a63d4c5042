"""The batches of all members at once, each member's in its own order."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hesitant.inputs import Batch, Order, Rows, as_batch, as_targets, map_tensors, member_loader, rows_of, tensors_of
from hesitant.training.schedule import steps_per_epoch
from hesitant.training.settings import Settings

_DATA_ON_DEVICE = 2**30  # bytes of training data that are kept on an accelerator


class MemberBatches:
    """The training data of members, gone through by each as it would by itself.

    Args:
        data: What fit was given.
        each: The settings of each member.
        device: Where the members are.

    Attributes:
        generators: Of each member's order.
        random_states: The state of the global generator for each member, from which its Dataset may draw.
    """

    def __init__(self, data: Any, each: Sequence[Settings], device: torch.device) -> None:
        self._data, self._each, self._device = data, each, device
        self.generators = [torch.Generator().manual_seed(own.seed) for own in each]
        self.random_states = [torch.Generator().manual_seed(own.seed).get_state() for own in each]
        self._rows = self._kept(rows_of(data))
        self._loaders = [] if self._rows is not None else [self.loader(generator) for generator in self.generators]
        self._orders: list[Order] = []

    def loader(self, generator: torch.Generator) -> DataLoader[Any]:
        """Answers the batches of a member in the order that the generator draws."""
        return member_loader(self._data, self._each[0].batch_size, generator)

    def steps_per_epoch(self) -> int | None:
        """Answers the optimizer's steps in an epoch; None where the data do not say how many they are."""
        return steps_per_epoch(self.loader(torch.Generator()), self._each[0].gradient_accumulation_steps)

    def firsts(self, seeded: Callable[[int], Any]) -> list[Batch]:
        """Answers the first batch of each member, drawn apart: no order moves.

        Args:
            seeded: A context in which the global generator has a seed.

        Raises:
            ValueError: There is none.
        """
        answer = []
        for own in self._each:
            with seeded(own.seed):
                item = next(iter(self.loader(torch.Generator().manual_seed(own.seed))), None)
            if item is None:
                raise ValueError("data holds no batch: expected at least one input.")
            answer.append(self._checked(as_batch(item)).to(self._device))
        return answer

    def epoch(self) -> Iterator[Sequence[Batch] | Batch]:
        """Gives the batches of an epoch: stacked where rows of tensors can be taken for all members at once."""
        if self._rows is None:
            yield from self._loaded()
            return
        if not self._orders:  # only now: a checkpoint has set the generators
            self._orders = [Order(self._rows.length, generator) for generator in self.generators]
        order = torch.stack([order.draw() for order in self._orders])  # (M, N)
        for chosen in order.to(tensors_of(self._rows.whole)[0].device).split(self._each[0].batch_size, dim=1):
            yield self._rows.take(chosen).to(self._device)

    # ---------------------------------------------------------------- inside

    def _kept(self, rows: Rows | None) -> Rows | None:
        if rows is None:
            return None
        whole = self._checked(rows.whole)
        size = sum(tensor.nbytes for tensor in tensors_of(whole))
        return Rows(whole.to(self._device) if size <= _DATA_ON_DEVICE else whole, rows.length)

    def _loaded(self) -> Iterator[list[Batch]]:
        """Gives the members' batches, each drawn with the member's own global random state."""
        iterators: list[Iterator[Any]] = []
        for index, loader in enumerate(self._loaders):
            with self._random_state(index):
                iterators.append(iter(loader))
        while True:
            items = []
            for index, iterator in enumerate(iterators):
                with self._random_state(index):
                    items.append(next(iterator, None))
            if any(item is None for item in items):
                return
            yield [self._checked(as_batch(item)).to(self._device) for item in items]

    def _checked(self, batch: Batch) -> Batch:
        """Answers a batch with targets as the default loss has them."""
        return batch if self._each[0].loss is not None else replace(batch, targets=as_targets(batch.targets))

    @contextmanager
    def _random_state(self, index: int) -> Iterator[None]:
        ours = torch.get_rng_state()  # from which the stack draws
        torch.set_rng_state(self.random_states[index])
        yield
        self.random_states[index] = torch.get_rng_state()
        torch.set_rng_state(ours)


def stacked(batches: Sequence[Batch]) -> Batch | None:
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
    whole = map_tensors(batches[0], lambda _: next(given))
    return Batch(whole.args, whole.kwargs, None if batches[0].targets is None else joined[-1])
