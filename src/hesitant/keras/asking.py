"""Models of our own around a user's: asked by one thread at a time, and without taking anything from it meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

_asking = threading.RLock()


class AskingModel(keras.Model):
    """A model whose layer is the user's model."""

    def _purge_model_variables(self, **_kinds: Any) -> None:
        """Leaves the variables their values.

        On JAX, Keras takes them from all variables, the user's too, while it predicts, and gives them back only if
        nothing is raised: an error, or another thread, would meet a model without weights.
        """


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Within it no other thread asks such a model: Keras keeps what a prediction needs on the model."""
    with _asking:
        yield


def is_read_once(x: Any) -> bool:
    """Answers whether each reading of these inputs may be another: a generator, a shuffled Dataset or DataLoader."""
    return not hasattr(x, "shape") and not isinstance(x, (list, tuple, dict))
