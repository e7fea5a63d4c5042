"""What a demo found out: the figures of each method, and everything needed to find them again."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hesitant.demos.methods import Method, Predictor, Task
from hesitant.evaluation import accuracy, auroc, ece, nll
from hesitant.files import replacing, write_text
from hesitant.prediction import Prediction, UnavailableError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES: Final = ("hesitant", "torch", "numpy", "accelerate", "scipy", "scikit-learn", "matplotlib")
TIMED_REPEATS: Final = 5
DPI: Final = 150


@dataclass(frozen=True)
class Figures:
    """The figures of one method. Probabilities and u lie in [0, 1]; what the method does not have is `None`.

    Attributes:
        name: The method, as people call it.
        accuracy: On held-out in-domain inputs, as `nll` (nats) and `ece` (15 bins).
        nll: Negative log-likelihood.
        ece: Expected calibration error.
        u_training: Mean u on the training inputs.
        u_held_out: Mean u on held-out inputs.
        u_ood: Mean u on out-of-domain inputs.
        u_corners: Mean u at the four corners of the grid, where there is one.
        auroc: Of u, out-of-domain against held-out.
        variance_training: Mean variance of the logits, here and in the next two.
        variance_held_out: On held-out inputs.
        variance_ood: On out-of-domain inputs.
        training_loss: Of the last epoch.
        training_seconds: Until the method can predict, its covariance included.
        predict_milliseconds: Of a warm prediction of the inputs that `DemoResult.predict_inputs` names; median of five.
        parameters: Numbers in the model, all members together.
    """

    name: str
    accuracy: float
    nll: float
    ece: float
    u_training: float
    u_held_out: float
    u_ood: float
    u_corners: float | None
    auroc: float
    variance_training: float | None
    variance_held_out: float | None
    variance_ood: float | None
    training_loss: float
    training_seconds: float
    predict_milliseconds: float
    parameters: int


@dataclass(frozen=True)
class DemoResult:
    """What a demo found out.

    Attributes:
        demo: Its name on the command line.
        seed: Of everything drawn.
        epochs: Passes over the training data.
        device: Where it ran, as torch names it.
        settings: All else that was set.
        methods: Figures by the method's name on the command line.
        predict_inputs: What `Figures.predict_milliseconds` is the time of.
        files: What was written, by kind: "png", "json" and "html".
    """

    demo: str
    seed: int
    epochs: int
    device: str
    settings: Mapping[str, Any]
    methods: Mapping[str, Figures]
    predict_inputs: str
    files: Mapping[str, Path] = field(default_factory=dict)

    def to_json(self) -> str:
        """All figures, settings, versions and the seed, as JSON."""
        content = {
            "demo": self.demo,
            "seed": self.seed,
            "epochs": self.epochs,
            "device": self.device,
            "settings": dict(self.settings),
            "predict_inputs": self.predict_inputs,
            "methods": {key: asdict(figures) for key, figures in self.methods.items()},
            "versions": versions(),
        }
        return json.dumps(content, indent=2) + "\n"

    def write(self, folder: Path, picture: "Figure", page: Callable[[Path], Path]) -> "DemoResult":
        """Writes the picture, the report and the figures, each whole or not at all, and answers with their paths too.

        Args:
            folder: Where to; what is there of an earlier run is written over.
            picture: Of the demo.
            page: Writes the report to the path that it is given.

        Raises:
            OSError: One cannot be written.
        """
        files = {kind: folder / f"{self.demo}.{kind}" for kind in ("png", "html", "json")}
        with replacing(files["png"]) as unfinished:
            picture.savefig(unfinished, dpi=DPI, format="png")
        page(files["html"])
        write_text(files["json"], self.to_json())
        return replace(self, files=files)


@dataclass(frozen=True)
class Answers:
    """What one trained method says of the inputs of a demo."""

    training: Prediction
    held_out: Prediction
    ood: Prediction
    timed: Prediction


def uncertainty(prediction: Prediction) -> Tensor:
    """Answers with u `(B,)` in [0, 1]: the predictive variance over its greatest value.

    `u = C / (C - 1) sum_c p_c (1 - p_c)`. For two classes it is the tutorial's `4 p (1 - p)`.
    """
    num_classes = prediction.probs.shape[1]
    return (prediction.predictive_variance * num_classes / (num_classes - 1)).clamp(0.0, 1.0)


def logit_variance(prediction: Prediction) -> Tensor | None:
    """Answers with the variance `(B,)` of the logits, the mean over classes, or `None` where the method has none."""
    try:
        return prediction.logit_variance.mean(dim=1)
    except UnavailableError:
        return None


def run_method(
    method: Method, task: Task, *, held_out: TensorDataset, ood: Tensor, timed: Tensor, corners: Tensor | None = None
) -> tuple[Figures, Answers]:
    """Trains a method, asks it about everything and takes its figures.

    Args:
        method: The method.
        task: What it is trained for.
        held_out: In-domain inputs with their targets, not trained on.
        ood: `(K, ...)` out-of-domain inputs.
        timed: `(T, ...)` inputs whose prediction is timed.
        corners: Inputs as far from the data as the plane goes.
    """
    started = time.perf_counter()
    predictor, history = method.train(task)
    seconds = time.perf_counter() - started

    def answer(inputs: Tensor) -> Prediction:
        return predictor.predict(inputs).to("cpu")

    train_inputs = task.train_data.tensors[0]
    inputs, targets = held_out.tensors
    answers = Answers(answer(train_inputs), answer(inputs).with_targets(targets), answer(ood), answer(timed))
    u_held_out, u_ood = uncertainty(answers.held_out), uncertainty(answers.ood)
    figures = Figures(
        name=method.name,
        accuracy=accuracy(answers.held_out),
        nll=nll(answers.held_out),
        ece=ece(answers.held_out),
        u_training=float(uncertainty(answers.training).mean()),
        u_held_out=float(u_held_out.mean()),
        u_ood=float(u_ood.mean()),
        u_corners=None if corners is None else float(uncertainty(answer(corners)).mean()),
        auroc=auroc(u_held_out, u_ood),
        variance_training=_mean(logit_variance(answers.training)),
        variance_held_out=_mean(logit_variance(answers.held_out)),
        variance_ood=_mean(logit_variance(answers.ood)),
        training_loss=history.train_loss[-1],
        training_seconds=seconds,
        predict_milliseconds=_milliseconds(predictor, timed),
        parameters=sum(weight.numel() for weight in predictor.parameters()),
    )
    return figures, answers


def require_device(device: str) -> str:
    """Answers with the device if this machine has it and `fit` can be told to train on it.

    Raises:
        ValueError: If torch does not know it, or the machine does not have it.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in there:
        raise ValueError(f"device={device!r} is not there to compute on: this machine has {', '.join(there)}")
    if wanted.index:
        raise ValueError(
            f"device={device!r} has a number, and training takes the first: choose which is the first with "
            f"CUDA_VISIBLE_DEVICES={wanted.index}, and say device={wanted.type!r}"
        )
    return device


def versions() -> dict[str, str]:
    """The versions that the figures depend on, and on how many threads they were taken."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    # torch's own name for itself says which build it is, +cu130 or +cpu.
    return {**found, "torch": torch.__version__, "threads": str(torch.get_num_threads())}


def _mean(values: Tensor | None) -> float | None:
    return None if values is None else float(values.mean())


def _milliseconds(predictor: Predictor, inputs: Tensor) -> float:
    # Every input was predicted once before, so the factorisation and the allocator are warm.
    durations = []
    for _ in range(TIMED_REPEATS):
        started = time.perf_counter()
        predictor.predict(inputs).to("cpu")
        durations.append(time.perf_counter() - started)
    return 1000.0 * statistics.median(durations)
