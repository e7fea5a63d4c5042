"""The two-moons demo: the SNGP tutorial's protocol, and the picture of it.

1,000 points to train on, 1,000 fresh ones held out, 500 out-of-domain, and a grid of 100 x 100 over the plane.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from hesitant.data import GRID_EXTENT, two_moons, two_moons_grid, two_moons_ood
from hesitant.demos.comparison import demo_comparison
from hesitant.demos.methods import Task, chosen_methods
from hesitant.demos.result import Answers, DemoResult, Figures, logit_variance, require_device, run_method, uncertainty
from hesitant.demos.two_moons_figure import MethodSurfaces, two_moons_figure
from hesitant.files import require_folder
from hesitant.nn import DeepResNet
from hesitant.plots import short
from hesitant.prediction import Prediction, UnavailableError
from hesitant.report import report

# Where the tutorial is under-confident on its own data, these are as sharp as a plain network. The learning rate, fit's
# default, lets the output weights grow (the tutorial's 1e-4 leaves them small); then the mean-field factor can be as
# cautious as in-domain data allows: the largest of a ladder whose NLL, on held-out points of other seeds, is no worse
# than that of the tutorial's deterministic network (benchmarks/two_moons.py, part "choose"). No out-of-domain point had
# a part in it.
SNGP_SETTINGS: Final[dict[str, Any]] = {
    "norm_bound": 0.9,
    "num_inducing": 1024,
    "kernel_scale": 1.0,
    "mean_field_factor": 40.0,
}
LEARNING_RATE: Final = 1e-3
EPOCHS: Final = 100
BATCH_SIZE: Final = 128
NUM_POINTS: Final = 1000
NUM_OOD: Final = 500
RESOLUTION: Final = 100
CLASS_NAMES: Final = ("upper moon", "lower moon")
OOD_NAME: Final = "far cloud"


def two_moons_task(
    generator: torch.Generator,
    *,
    seed: int,
    epochs: int = EPOCHS,
    device: str = "cpu",
    progress: bool = False,
    sngp_settings: Mapping[str, Any] = SNGP_SETTINGS,
    learning_rate: float = LEARNING_RATE,
) -> Task:
    """Answers with the demo's task, its training points drawn from the generator."""
    train = two_moons(NUM_POINTS, generator=generator)
    return Task(
        build_network=lambda generator: DeepResNet(2, 2, generator=generator),
        train_data=TensorDataset(train.inputs, train.targets),
        sngp_settings=sngp_settings,
        epochs=epochs,
        batch_size=BATCH_SIZE,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
        progress=progress,
    )


def run_two_moons(
    methods: Iterable[str] | None = None,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    device: str = "cpu",
    out: str | Path | None = None,
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
    sngp_settings: Mapping[str, Any] = SNGP_SETTINGS,
    learning_rate: float = LEARNING_RATE,
) -> DemoResult:
    """Trains the methods on two moons and answers with their figures.

    Args:
        methods: Keys of `hesitant.demos.methods.METHODS`; by default all.
        seed: Of the data, the weights, the dropout.
        epochs: Passes over the training points.
        device: Where to compute, as torch names it.
        out: A folder for `two-moons.png`, `two-moons.html` and `two-moons.json`; by default nothing is written.
        progress: Whether to show a bar while training.
        announce: Is told the name of each method before it is trained.
        sngp_settings: Options of `SNGP`.
        learning_rate: Of Adam.

    Raises:
        ValueError: If a method is unknown, `out` cannot be written to, or the device is not there.
    """
    chosen = chosen_methods(methods)
    folder = None if out is None else require_folder(Path(out))
    generator = torch.Generator().manual_seed(seed)
    task = two_moons_task(
        generator,
        seed=seed,
        epochs=epochs,
        device=require_device(device),
        progress=progress,
        sngp_settings=sngp_settings,
        learning_rate=learning_rate,
    )
    held_out = two_moons(NUM_POINTS, generator=generator)
    ood = two_moons_ood(NUM_OOD, generator=generator)
    grid = two_moons_grid(RESOLUTION)
    left, right, bottom, top = GRID_EXTENT
    figures: dict[str, Figures] = {}
    answers: dict[str, Answers] = {}
    for key, method in chosen.items():
        if announce is not None:
            announce(method.name)
        figures[key], answers[key] = run_method(
            method,
            task,
            held_out=TensorDataset(held_out.inputs, held_out.targets),
            ood=ood,
            timed=grid,
            corners=torch.tensor([[left, bottom], [left, top], [right, bottom], [right, top]]),
        )
    result = DemoResult(
        demo="two-moons",
        seed=seed,
        epochs=epochs,
        device=device,
        settings={
            "learning_rate": learning_rate,
            "batch_size": BATCH_SIZE,
            "training_points": NUM_POINTS,
            "held_out_points": NUM_POINTS,
            "out_of_domain_points": NUM_OOD,
            "grid_resolution": RESOLUTION,
            "sngp": dict(sngp_settings),
        },
        methods=figures,
        predict_inputs=f"the grid's {len(grid):,} points",
    )
    if folder is None:
        return result
    inputs, targets = (tensor.numpy() for tensor in task.train_data.tensors)
    rows = [_surfaces(figures[key], answers[key]) for key in figures]
    comparison = demo_comparison(figures, answers, held_out=held_out.inputs, ood=ood, ood_name=OOD_NAME)
    return result.write(
        folder,
        two_moons_figure(inputs, targets, ood.numpy(), rows, extent=GRID_EXTENT),
        lambda path: report(
            comparison,
            path,
            title="Two moons, and a cloud of points away from both",
            class_names=CLASS_NAMES,
            feature_names=("x", "y"),
        ),
    )


def _surfaces(figures: Figures, answers: Answers) -> MethodSurfaces:
    def square(values: Tensor) -> Any:
        return values.reshape(RESOLUTION, RESOLUTION).numpy()

    distance, name = _distance(answers.timed)
    on_data, outside = _distance(answers.held_out)[0], _distance(answers.ood)[0]
    return MethodSurfaces(
        name=figures.name,
        probability=square(answers.timed.probs[:, 1]),
        uncertainty=square(uncertainty(answers.timed)),
        distance=None if distance is None else square(distance),
        distance_name=name,
        distance_figures=""
        if on_data is None or outside is None
        else f"out-of-domain {short(float(outside.mean()))}, on data {short(float(on_data.mean()))}",
        u_held_out=figures.u_held_out,
        u_corners=0.0 if figures.u_corners is None else figures.u_corners,
        u_ood=figures.u_ood,
        nll=figures.nll,
    )


def _distance(prediction: Prediction) -> tuple[Tensor | None, str]:
    """What the method has, beside its probabilities, that should grow away from the data, and its name."""
    variance = logit_variance(prediction)
    if variance is not None:
        return variance, "logit variance"
    try:
        return prediction.mutual_information / math.log(2), "mutual information / ln 2"
    except UnavailableError:
        return None, "one softmax: nothing in it\nmeasures the distance to the data"
