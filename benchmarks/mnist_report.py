"""The report of MNIST's four methods, with Fashion-MNIST as what none of them knows: one HTML page to look at.

    python benchmarks/mnist_report.py                        # a quarter of an hour on two cores
    python benchmarks/mnist_report.py --members 3   # sooner

Writes mnist_report.html and mnist_report.json into benchmarks/results. Networks, training and SNGP's settings are those
of benchmarks/mnist.py.
"""

import argparse
import json
from pathlib import Path

import torch
from mnist import NUM_MEMBERS, NUM_PASSES, RECIPES, Images, train_classic, train_sngp

from hesitant import Deterministic, MCDropout, compare
from hesitant.report import report


def main() -> None:
    """Trains the four methods of one recipe, compares them and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="pytorch")
    parser.add_argument("--members", type=int, default=NUM_MEMBERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent / "data")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe]
    images = Images.of(recipe, arguments.folder)
    ensemble = train_classic(recipe, images, arguments.seed, arguments.members, arguments.device)
    sngp = train_sngp(recipe, images.train, arguments.seed, recipe.sngp, arguments.device)
    comparison = compare(
        {
            "Deterministic": Deterministic(ensemble.members[0]),
            "MC dropout": MCDropout(ensemble.members[0], NUM_PASSES),
            "Deep ensemble": ensemble,
            "SNGP": sngp,
        },
        torch.utils.data.TensorDataset(*images.test),
        ood={"Fashion-MNIST": images.unknown},
        predict_options={"MC dropout": {"seed": arguments.seed}},
        confidence_intervals=True,
    )
    print(comparison)
    (arguments.out / "mnist_report.json").write_text(json.dumps(comparison.to_dict(), indent=2) + "\n")
    path = report(
        comparison,
        arguments.out / "mnist_report.html",
        title=f"MNIST, {recipe.title}: which model to trust, and how far",
        image_shape=(28, 28),
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
