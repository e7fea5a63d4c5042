"""Dropout passes as a model of their own, which Keras compiles: none of its traces is one of the user's model."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import keras
from hesitant.keras.asking import AskingModel
from hesitant.keras.covariance_pass import all_layers
from hesitant.keras.forced_dropout import ForcedPasses, parts_of
from keras import ops

_ROWS = 8192  # of one batch with all its passes
_APART = 1024  # draws of one layer in one batch, so that no two batches share a mask


class DropoutPasses(AskingModel):
    """Answers ``passes`` outputs for each input, ``(B, passes, ...)``, with masks of their own.

    Raises:
        ValueError: The model is not built, or no dropout is in it.
    """

    def __init__(self, model: Any, passes: int) -> None:
        super().__init__(dtype="float32")
        if not model.built:
            raise ValueError(f"model {model.name} is not built: call it on some inputs, or train it, first.")
        parts = parts_of(model)
        if not parts.dropping:
            raise ValueError(
                f"model {model.name} has no dropout: all passes would be the same. Give it Dropout layers (of a rate"
                " above 0), made in the constructor and trained with; dropout that its code draws by keras.random is"
                " not found."
            )
        self.asked = model
        self.passes = 1 if parts.one_mask else passes
        self.seeds = keras.random.SeedGenerator(0)
        self._forced = ForcedPasses(model, parts)
        # Of each layer that draws, an offset of its own.
        self._drawn_from = [seeds for layer in all_layers(model) for seeds in getattr(layer, "_seed_generators", [])]
        self._offsets = np.random.default_rng(0).integers(0, 2**29, len(self._drawn_from))
        self.built = True

    def start_from(self, seed: int) -> None:
        """Lets the next batch be the first of this seed."""
        hashed = int(np.random.SeedSequence(seed).generate_state(1)[0]) % 2**29
        self.seeds.state.assign(np.asarray([hashed, 0]))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Answers the outputs of all passes over a batch.

        Raises:
            ValueError: No dropout took part, or the model answers several tensors.
        """
        base = self.seeds.next()
        values = {id(variable): variable.value for variable in self.asked.variables}
        for seeds, offset in zip(self._drawn_from, self._offsets, strict=True):
            state = ops.stack([base[0] + ops.cast(int(offset), base.dtype), base[1] * _APART])
            values[id(seeds.state)] = ops.cast(state, seeds.state.dtype)
        variables = [*self.asked.variables, *(seeds.state for seeds in self._drawn_from)]
        mapping = {id(variable): (variable, values[id(variable)]) for variable in variables}
        # In a scope of its own no draw, and nothing else, is written to the model.
        with keras.StatelessScope(list(mapping.values())), _own_random_state(base):
            outputs, took_part = self._forced.answer(inputs, self.passes)
        if took_part == 0:
            raise ValueError(
                f"no dropout of model {self.asked.name} took part in its call: all passes would be the same. Does its"
                " call() go through its Dropout layers in inference as well, and leave switching them off to them?"
            )
        if not hasattr(outputs, "shape"):
            raise ValueError(
                f"model {self.asked.name} answers a {type(outputs).__name__}: expected one tensor (B, C). Build a model"
                " of the output that is meant."
            )
        outputs = ops.reshape(outputs, (self.passes, -1, *outputs.shape[1:]))
        return ops.swapaxes(outputs, 0, 1)


@contextmanager
def _own_random_state(seed: Any) -> Iterator[None]:
    """On PyTorch a dropout layer without a seed draws from the global generator: it is lent, and put back."""
    if keras.backend.backend() != "torch" or seed.device.type == "meta":
        yield
        return
    random = sys.modules["torch"].random
    with random.fork_rng(devices=[seed.device] if seed.device.type == "cuda" else []):
        random.manual_seed((int(seed[0]) + 1_000_003 * int(seed[1])) % 2**32)  # no more bits count on a CPU
        yield


def passes_at_once(num_samples: int, batch_size: int) -> int:
    """Answers how many of the passes go into one call, as even as may be: a batch times its passes is bounded."""
    most = max(1, _ROWS // batch_size)
    calls = -(-num_samples // most)
    return -(-num_samples // calls)
