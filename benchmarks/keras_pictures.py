"""The tutorial's picture on each backend of Keras beside that of the PyTorch face: how unsure each method is where.

    python benchmarks/keras_face.py --parts tutorial    # keeps the surfaces of its first seed
    python benchmarks/keras_pictures.py                 # draws them, and those of the PyTorch face

Writes docs/keras-tutorial.png. The PyTorch face trains by the same protocol (`two_moons.py`): one seed, and ten
deterministic networks for the ensemble.
"""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from keras_face import BACKENDS, SEEDS, SURFACES
from two_moons import train_tutorial_deterministic, train_tutorial_sngp

from hesitant import DeepEnsemble, MCDropout
from hesitant.data import two_moons, two_moons_grid
from hesitant.demos.two_moons import two_moons_task
from hesitant.plots import points, surface

PICTURE = Path(__file__).parents[1] / "docs" / "keras-tutorial.png"
METHODS = ("deterministic", "MC dropout", "ensemble", "SNGP")
EXTENT = (-3.5, 3.5, -2.5, 2.5)


def pytorch_surfaces() -> dict[str, Any]:
    """Answers the probabilities `(10,000, 2)` of each method over the plane, by the PyTorch face."""
    tasks = [two_moons_task(torch.Generator().manual_seed(seed), seed=seed) for seed in SEEDS]
    plain: list[Any] = [train_tutorial_deterministic(task)[0] for task in tasks]
    methods = {
        "deterministic": plain[0],
        "MC dropout": MCDropout(plain[0].model, 10),
        "ensemble": DeepEnsemble(plain),
        "SNGP": train_tutorial_sngp(tasks[0])[0],
    }
    return {name: method.predict(two_moons_grid(100)).probs.numpy() for name, method in methods.items()}


def main() -> None:
    """Draws a row for each backend that was run, and one for the PyTorch face."""
    kept = {name: SURFACES / f"{name}.npz" for name in BACKENDS}
    rows = {f"Keras, {name}": dict(np.load(path)) for name, path in kept.items() if path.exists()}
    rows["hesitant in PyTorch"] = pytorch_surfaces()
    moons = two_moons(1000, generator=torch.Generator().manual_seed(0))
    size = (3.1 * len(METHODS), 2.5 * len(rows))
    figure, axes = plt.subplots(len(rows), len(METHODS), figsize=size, layout="constrained", squeeze=False)
    for row, (title, surfaces) in enumerate(rows.items()):
        for axis, name in zip(axes[row], METHODS, strict=True):
            p = surfaces[name]
            surface((4 * p[:, 0] * p[:, 1]).reshape(100, 100), axis, extent=EXTENT, title=name if row == 0 else "")
            points(moons.inputs[::20].numpy(), moons.targets[::20].numpy(), ax=axis)
            axis.set(xlabel="", ylabel="", xticks=[], yticks=[])
        axes[row, 0].set_ylabel(title)
    figure.colorbar(axes[0, 0].images[-1], ax=axes, label="uncertainty, 4 p (1 - p)")
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
