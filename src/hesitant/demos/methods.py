"""The methods that the demos compare. A further one is one more function and one more entry in `METHODS`."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hesitant.methods import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.nn import SpectralBoundWarning
from hesitant.prediction import Prediction
from hesitant.training import History, fit

# The tutorial's numbers.
NUM_SAMPLES: Final = 10
NUM_MEMBERS: Final = 10


class Predictor(Protocol):
    """What every method can do once it is trained."""

    def predict(self, inputs: Tensor) -> Prediction:
        """Answers with the predictive distribution of the inputs `(B, ...)`."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""
        ...


@dataclass(frozen=True)
class Task:
    """What a method is to be trained for, and how.

    Attributes:
        build_network: Makes the plain network, its weights drawn from the generator that it is given, or from the
            global one.
        train_data: Pairs of an input and its target.
        sngp_settings: Options of `SNGP`.
        epochs: Passes over the data.
        batch_size: Inputs a step.
        learning_rate: Of Adam.
        seed: Of the initial weights, the order of the data and the dropout.
        device: Where to train, as torch names it.
        progress: Whether to show a bar.
    """

    build_network: Callable[[torch.Generator | None], nn.Module]
    train_data: TensorDataset
    sngp_settings: Mapping[str, Any]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    device: str
    progress: bool

    def generator(self) -> torch.Generator:
        """A fresh generator: every method starts from the same weights, whichever others take part."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Method:
    """A method of the comparison: its name in tables and pictures, and how it is built and trained."""

    name: str
    train: Callable[[Task], tuple[Predictor, History]]


@dataclass(frozen=True)
class Seeded:
    """A method that draws samples, made to draw the same each time."""

    method: MCDropout
    seed: int

    def predict(self, inputs: Tensor) -> Prediction:
        """Answers with the predictive distribution of the inputs `(B, ...)`."""
        return self.method.predict(inputs, seed=self.seed)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""
        return self.method.parameters()


def train_deterministic(task: Task) -> tuple[Predictor, History]:
    """Trains the plain network."""
    model = Deterministic(task.build_network(task.generator()))
    return model, _fit(model, task)


def train_mc_dropout(task: Task) -> tuple[Predictor, History]:
    """Trains the plain network too; its dropout stays on when it predicts."""
    model = MCDropout(task.build_network(task.generator()), num_samples=NUM_SAMPLES)
    return Seeded(model, task.seed), _fit(model, task)


def train_ensemble(task: Task) -> tuple[Predictor, History]:
    """Trains several of the plain network at once, each from weights of its own."""
    ensemble = DeepEnsemble.from_builder(lambda: task.build_network(None), NUM_MEMBERS, seed=task.seed)
    return ensemble, _fit(ensemble, task)


def train_sngp(task: Task) -> tuple[Predictor, History]:
    """Trains SNGP on the same network; the covariance is fitted in a pass of its own at the end."""
    generator = task.generator()
    model = SNGP(task.build_network(generator), generator=generator, **task.sngp_settings)
    with warnings.catch_warnings():
        # The warning is for pretrained weights; these are fresh ones, whose norms the bound is there to shrink.
        warnings.simplefilter("ignore", SpectralBoundWarning)
        return model, _fit(model, task)


METHODS: Final[dict[str, Method]] = {
    "deterministic": Method("Deterministic", train_deterministic),
    "mc-dropout": Method("MC dropout", train_mc_dropout),
    "ensemble": Method("Deep ensemble", train_ensemble),
    "sngp": Method("SNGP", train_sngp),
}


def chosen_methods(keys: Iterable[str] | None) -> dict[str, Method]:
    """Answers with the methods of these keys in their order, each once; with all of them for `None`.

    Raises:
        ValueError: If a key is unknown, or there is none.
    """
    wanted = list(METHODS if keys is None else keys)
    known = ", ".join(METHODS)
    for key in wanted:
        if key not in METHODS:
            raise ValueError(f"methods holds {key!r}, which is none of the known methods: choose from {known}")
    if not wanted:
        raise ValueError(f"methods is empty: choose one or more of {known}")
    return {key: METHODS[key] for key in wanted}


def _fit(model: nn.Module, task: Task) -> History:
    return fit(
        model,
        task.train_data,
        epochs=task.epochs,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        seed=task.seed,
        device=task.device,
        progress=task.progress,
    )
