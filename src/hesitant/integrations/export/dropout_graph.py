"""Monte Carlo dropout within a graph: what comes before the first dropout once, the rest for all passes together."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hesitant.inputs import Batch, tensors_of
from hesitant.integrations.export.answer import Answer, answer_of_passes
from hesitant.integrations.export.dropout_passes import DropoutPasses
from hesitant.integrations.export.dropout_program import DropoutProgram
from hesitant.integrations.export.graph_masks import GraphMasks
from hesitant.methods import MCDropout, log_probs_of, require_rows
from hesitant.prediction import as_floating, two_class_logits

_CHECKED = 3  # passes that are run together and one by one, before anything is written
_ROUNDING = {False: 1e-4, True: 5e-2}  # of probabilities, in half precision or not


class DropoutGraph(nn.Module):
    """The passes of MC dropout, S of them or ``chunk_size`` at a time.

    Args:
        method: What it answers for.
        batch: What it is to be asked, for example; at least two inputs.
        dynamic: Which axes of each tensor of the batch have any length (``shapes_of``).

    Raises:
        ValueError: The passes cannot run together, or cannot share masks.
    """

    def __init__(self, method: MCDropout, batch: Batch, dynamic: dict[int, dict[int, Any]]) -> None:
        super().__init__()
        self.outputs, self.num_samples, self.shared = method.outputs, method.num_samples, method.masks == "shared"
        self.at_once = min(method.chunk_size or method.num_samples, method.num_samples)
        self.keywords = list(batch.kwargs)
        self.program = DropoutProgram(method, batch, dynamic)
        self.num_masks = sum(map(self.program.drops, self.program.operations))
        self._check(tensors_of(batch))

    def forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], temperature: float, masks: Iterator[Tensor] | None
    ) -> Answer:
        """Answers about the inputs of one forward pass."""
        given = None if masks is None else [next(masks) for _ in range(self.num_masks)]
        tensors = tensors_of(Batch(args, {name: kwargs[name] for name in self.keywords}))
        self.program.note_equal_sizes(tensors)
        once, outputs = self.program.once(tensors), []
        for start in range(0, self.num_samples, self.at_once):
            times = min(self.at_once, self.num_samples - start)
            part = None if given is None else [mask[start : start + times] for mask in given]
            outputs.append(self._passes(once, times, GraphMasks(part, times)))
        output = require_rows(outputs[0] if len(outputs) == 1 else torch.cat(outputs), None, self)
        single = output.ndim == 1 or output.shape[-1] == 1
        if self.outputs == "logits":
            output = two_class_logits(as_floating("logits", output))
        else:
            output = log_probs_of(output, self.outputs)
        logits = output.unflatten(0, (self.num_samples, output.shape[0] // self.num_samples))  # (S, B, C)
        return answer_of_passes(logits, self.outputs, temperature, single=single)

    @torch.no_grad()
    def drawn_masks(self, tensors: Sequence[Tensor], num_samples: int) -> GraphMasks:
        """Answers masks drawn for some inputs, with their rates."""
        drawn = GraphMasks(None, num_samples)
        self._passes(self.program.once(tensors), num_samples, drawn)
        return drawn

    def _passes(self, once: dict[Any, Any], times: int, masks: GraphMasks) -> Tensor:
        return DropoutPasses(self.program, once, times, masks, shared=self.shared).output()

    @torch.no_grad()
    def _check(self, tensors: Sequence[Tensor]) -> None:
        """Requires that passes answer together what each answers by itself."""
        once, drawn = self.program.once(tensors), GraphMasks(None, _CHECKED)
        together = self._passes(once, _CHECKED, drawn)
        parts = [[mask[index : index + 1] for mask in drawn.kept] for index in range(_CHECKED)]
        alone = torch.cat([self._passes(once, 1, GraphMasks(part, 1)) for part in parts])
        probs = [log_probs_of(output, self.outputs).exp() for output in (together, alone)]
        if not bool((probs[0] - probs[1]).abs().amax() <= _ROUNDING[together.dtype.itemsize < 4]):
            raise self.program.refusal("the model's answer to an input depends on the others in its batch")
