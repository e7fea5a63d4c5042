"""The two classic Monte Carlo dropout networks on MNIST, beside SNGP and a deep ensemble, with Fashion-MNIST unknown.

    python benchmarks/mnist.py                               # everything: an hour and a half on one core
    python benchmarks/mnist.py --parts keras --seeds 0 --rows deterministic sngp
    python benchmarks/mnist.py --table                       # what was measured, as Markdown for docs/figures.md

Writes benchmarks/results/mnist.json, after each seed and row, and keeps what is there of others. The parts:

choose   SNGP's settings, from 5,000 held-out training images of MNIST alone. See `choose` for the rule.
keras    784-500-250-10, dropout .2 before each layer, the input too, pixels in [0, 1], RMSprop as Keras has it.
pytorch  784-512-256-10, dropout .5 after each hidden layer, pixels normalised by (.1307, .3081), Adam 1e-3.

Both recipes: cross-entropy, batches of 128, 10 epochs, all 60,000 training images. The Keras recipe states neither the
batch nor the epochs: 128 and 10 are our choice, those of the other. The rows, each over all seeds:

deterministic  The trained network, dropout off.
mc_dropout     The same network, 100 passes with dropout on.
deep_ensemble  Ten networks trained alike, dropout off; the first of them is the network of the two rows above.
control        The plain network trained as SNGP is: what of SNGP's lead is the training's.
sngp           The same layers with a Gaussian process for a classifier, settings as chosen (SNGP_SETTINGS).

Figures are of the 10,000 test images. Fashion-MNIST's 10,000 test images, preprocessed alike, are the positive class of
each AUROC: by predictive entropy, by mutual information, by the variance of the logits, where a method has them.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _measuring import machine
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout, Prediction, fit
from hesitant.data import fashion_mnist, mnist
from hesitant.evaluation import accuracy, auroc, ece, nll
from hesitant.files import write_text
from hesitant.nn import mean_field_logits
from hesitant.nn.models import MLP

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "mnist.json"
ROWS = ("deterministic", "mc_dropout", "deep_ensemble", "control", "sngp")
CLASSIC = ("deterministic", "mc_dropout", "deep_ensemble")
NUM_MEMBERS = 10
NUM_PASSES = 100
TITLES = {
    "deterministic": "deterministic",
    "mc_dropout": f"MC dropout, {NUM_PASSES} passes",
    "deep_ensemble": f"deep ensemble of {NUM_MEMBERS}",
    "control": "deterministic, SNGP's training",
    "sngp": "SNGP",
}
OTHER_SCORES = {"auroc_mutual_information": "(mutual information)", "auroc_logit_variance": "(logit variance)"}
EPOCHS = 10
BATCH_SIZE = 128
# What `choose` chooses from. The seed is of no other part.
NUM_HELD_OUT = 5000
HELD_OUT_SEED = 100
FACTORS = (1.0, 3.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
_FIRST: dict[str, Any] = {"dropout": 0.1}
CANDIDATES: dict[str, dict[str, Any]] = {
    "the defaults": _FIRST,
    "first batch's scale": {**_FIRST, "kernel_scale": "median"},
    "no dropout": {**_FIRST, "dropout": 0.0},
    "bound 3": {**_FIRST, "norm_bound": 3.0},
    "ridge .1": {**_FIRST, "ridge_penalty": 0.1},
}
# What `choose` answered, of both recipes.
_CHOSEN: dict[str, Any] = {**CANDIDATES["first batch's scale"], "mean_field_factor": 160.0}


def keras_rmsprop(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """RMSprop with the defaults of Keras."""
    return torch.optim.RMSprop(parameters, lr=1e-3, alpha=0.9, eps=1e-7)


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Adam with the defaults of PyTorch."""
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


@dataclass(frozen=True)
class Recipe:
    """A classic network and how it is trained.

    Attributes:
        title: Its name in the table.
        hidden: Sizes of the hidden layers.
        dropout: Probability that a hidden unit is dropped.
        dropout_input: Probability that a pixel is dropped.
        mean: What is taken off the pixels.
        std: What they are divided by then.
        optimizer: Makes the optimizer.
        required_accuracy: Of MC dropout on the test images.
        sngp: Settings of SNGP, as `choose` answered.
    """

    title: str
    hidden: tuple[int, int]
    dropout: float
    dropout_input: float
    mean: float
    std: float
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    required_accuracy: float
    sngp: dict[str, Any]

    def network(self) -> MLP:
        """Answers the network with fresh weights, from the global generator."""
        return MLP(784, 10, hidden=self.hidden, dropout=self.dropout, dropout_input=self.dropout_input)

    def prepared(self, images: Tensor) -> Tensor:
        """Answers images `(B, 1, 28, 28)` in [0, 1] as the network takes them, `(B, 784)`."""
        return (images.flatten(1) - self.mean) / self.std


RECIPES = {
    "keras": Recipe("Keras recipe", (500, 250), 0.2, 0.2, 0.0, 1.0, keras_rmsprop, 0.98, _CHOSEN),
    "pytorch": Recipe("PyTorch recipe", (512, 256), 0.5, 0.0, 0.1307, 0.3081, adam, 0.975, _CHOSEN),
}


@dataclass(frozen=True)
class Images:
    """The images of a recipe, as its network takes them, and their classes."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    unknown: Tensor

    @classmethod
    def of(cls, recipe: Recipe, folder: Path) -> "Images":
        """Answers those of MNIST, and Fashion-MNIST's test images as the unknown."""
        digits, clothes = mnist(folder), fashion_mnist(folder)
        (train, train_targets), (test, test_targets) = digits.train.tensors, digits.test.tensors
        unknown = clothes.test.tensors[0]
        return cls(
            (recipe.prepared(train), train_targets), (recipe.prepared(test), test_targets), recipe.prepared(unknown)
        )


def figures(predict: Callable[[Tensor], Prediction], images: Images) -> dict[str, float]:
    """Answers the figures of a trained method."""
    inputs, targets = images.test
    known, unknown = predict(inputs).to("cpu").with_targets(targets), predict(images.unknown).to("cpu")
    answer = {
        "accuracy": accuracy(known),
        "nll": nll(known),
        "ece": ece(known),
        "auroc_predictive_entropy": auroc(known.predictive_entropy, unknown.predictive_entropy),
    }
    if "mutual_information" in known.available:
        answer["auroc_mutual_information"] = auroc(known.mutual_information, unknown.mutual_information)
    if "logit_variance" in known.available:
        answer["auroc_logit_variance"] = auroc(known.logit_variance.mean(1), unknown.logit_variance.mean(1))
    return answer


def train_classic(recipe: Recipe, images: Images, seed: int, num_members: int, device: str) -> DeepEnsemble:
    """Answers an ensemble of the recipe's networks, the first alike whatever their number."""
    ensemble = DeepEnsemble.from_builder(recipe.network, num_members, seed=seed)
    for index, member in enumerate(ensemble.members):
        fit(
            member,
            images.train,
            epochs=EPOCHS,
            batch_size=BATCH_SIZE,
            optimizer=recipe.optimizer,
            scheduler=None,
            seed=1000 * seed + index,
            device=device,
            progress=False,
        )
    return ensemble


def measure(recipe: Recipe, images: Images, seed: int, rows: list[str], device: str, note: Callable[..., None]) -> None:
    """Trains what the rows need and notes the figures of each."""
    classic = [row for row in rows if row in CLASSIC]
    if classic:
        members = NUM_MEMBERS if "deep_ensemble" in classic else 1
        ensemble = train_classic(recipe, images, seed, members, device)
        first = ensemble.members[0]
        if "deterministic" in classic:
            note(seed, "deterministic", figures(Deterministic(first).predict, images))
        if "mc_dropout" in classic:
            method = MCDropout(first, NUM_PASSES)
            note(seed, "mc_dropout", figures(lambda x: method.predict(x, seed=seed), images))
        if "deep_ensemble" in classic:
            note(seed, "deep_ensemble", figures(ensemble.predict, images))
    if "control" in rows:
        network = sngp_network(recipe, recipe.sngp["dropout"], torch.Generator().manual_seed(seed))
        fit_as_sngp(network, images.train, seed, device)
        note(seed, "control", figures(Deterministic(network).predict, images))
    if "sngp" in rows:
        model = train_sngp(recipe, images.train, seed, recipe.sngp, device)
        note(seed, "sngp", figures(model.predict, images))


def train_sngp(recipe: Recipe, data: tuple[Tensor, Tensor], seed: int, settings: dict[str, Any], device: str) -> SNGP:
    """Answers SNGP of the recipe's layers, with dropout of its own, trained by AdamW along a cosine."""
    options = dict(settings)
    generator = torch.Generator().manual_seed(seed)
    network = sngp_network(recipe, options.pop("dropout"), generator)
    model = SNGP(network, generator=generator, **options)
    fit_as_sngp(model, data, seed, device)
    return model


def sngp_network(recipe: Recipe, dropout: float, generator: torch.Generator) -> MLP:
    """Answers the recipe's layers with the dropout of SNGP."""
    return MLP(784, 10, hidden=recipe.hidden, dropout=dropout, generator=generator)


def fit_as_sngp(model: nn.Module, data: tuple[Tensor, Tensor], seed: int, device: str) -> None:
    """Trains a model as SNGP is trained."""
    fit(
        model,
        data,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        learning_rate=1e-3,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, EPOCHS),
        seed=seed,
        device=device,
        progress=False,
    )


def choose(recipe: Recipe, images: Images, candidates: dict[str, dict[str, Any]], device: str) -> dict[str, Any]:
    """Answers SNGP's settings by a rule that sees neither test images nor Fashion-MNIST.

    5,000 training images are held out. The recipe's plain network and each candidate are trained on the other 55,000.
    The candidate is that of the lowest held-out NLL, each at the mean-field factor that suits it best. The factor is
    then the most cautious of the ladder whose held-out NLL is still no worse than the plain network's. The first recipe
    chooses among all candidates; the others take its choice and find their own factor.
    """
    inputs, targets = images.train
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(HELD_OUT_SEED))
    held_out, rest = order[:NUM_HELD_OUT], order[NUM_HELD_OUT:]
    data = inputs[rest], targets[rest]
    ensemble = train_classic(recipe, replace(images, train=data), HELD_OUT_SEED, 1, device)
    plain = Deterministic(ensemble.members[0]).predict(inputs[held_out]).to("cpu").with_targets(targets[held_out])
    answer: dict[str, Any] = {"plain": {"accuracy": accuracy(plain), "nll": nll(plain)}, "candidates": {}}
    for name, settings in candidates.items():
        model = train_sngp(recipe, data, HELD_OUT_SEED, settings, device)
        prediction = model.predict(inputs[held_out]).to("cpu").with_targets(targets[held_out])
        by_factor = {
            factor: F.cross_entropy(
                mean_field_logits(prediction.logits, prediction.logit_variance, factor), targets[held_out]
            ).item()
            for factor in FACTORS
        }
        allowed = [factor for factor, value in by_factor.items() if value <= answer["plain"]["nll"]]
        answer["candidates"][name] = {
            "settings": settings,
            "accuracy": accuracy(prediction),
            "nll": {f"{factor:.4g}": value for factor, value in by_factor.items()},
            "lowest_nll": min(by_factor.values()),
            "factor": max(allowed, default=None),
            "kernel_scale": model.gp.kernel_scale,
        }
        print(f"choose, {recipe.title}, {name}: {answer['candidates'][name]}, plain {answer['plain']}", flush=True)
    best = min(answer["candidates"], key=lambda name: answer["candidates"][name]["lowest_nll"])
    chosen = answer["candidates"][best]
    return {**answer, "chosen": best, "settings": {**chosen["settings"], "mean_field_factor": chosen["factor"]}}


def summary(by_seed: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Answers median, minimum and maximum over the seeds of each figure."""
    answer = {}
    for name in next(iter(by_seed.values())):
        values = [row[name] for row in by_seed.values()]
        answer[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return answer


def requirements(recipe: Recipe, rows: dict[str, Any]) -> dict[str, bool]:
    """Answers which of the requirements hold, by the medians of what was measured."""
    median = {row: {name: value["median"] for name, value in rows[row]["summary"].items()} for row in rows}
    answer = {}
    if "mc_dropout" in median:
        answer[f"mc_dropout accuracy >= {recipe.required_accuracy}"] = (
            median["mc_dropout"]["accuracy"] >= recipe.required_accuracy
        )
    if "sngp" in median:
        answer["sngp accuracy >= 0.98"] = median["sngp"]["accuracy"] >= 0.98
        answer["sngp auroc >= 0.95"] = median["sngp"]["auroc_predictive_entropy"] >= 0.95
    return answer


def read(path: Path) -> dict[str, Any]:
    """Answers what was measured so far."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results


def keep(path: Path, part: str, found: dict[str, Any], device: str) -> None:
    """Adds to one part of the results in the file, which is whole at any moment."""
    results = read(path)
    results.setdefault(part, {}).update(found)
    results["machine"] = machine(torch.device(device))
    results["settings"] = {
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "members": NUM_MEMBERS,
        "passes": NUM_PASSES,
        "sngp": {name: recipe.sngp for name, recipe in RECIPES.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=2) + "\n")


def note_in(path: Path, name: str, device: str) -> Callable[[int, str, dict[str, float]], None]:
    """Answers what keeps the figures of a seed and row of a recipe, and the summary of all its seeds so far."""

    def note(seed: int, row: str, found: dict[str, float]) -> None:
        rows = read(path).get(name, {})
        by_seed = {**rows.get(row, {}).get("seeds", {}), str(seed): found}
        rows[row] = {"title": TITLES[row], "summary": summary(by_seed), "seeds": by_seed}
        measured = {key: rows[key] for key in ROWS if key in rows}
        keep(path, name, {row: rows[row], "requirements": requirements(RECIPES[name], measured)}, device)
        said = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
        print(f"{name}, seed {seed}, {row}: {said}", flush=True)

    return note


def table(results: dict[str, Any]) -> str:
    """Answers the results in Markdown: median [min, max] over the seeds."""
    lines = []
    for name, recipe in RECIPES.items():
        rows = results.get(name, {})
        lines += [
            f"| {recipe.title} | seeds | accuracy | NLL | ECE | AUROC, entropy | AUROC, other score |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in ROWS:
            if row not in rows:
                continue
            found = rows[row]["summary"]
            other = next((key for key in OTHER_SCORES if key in found), None)
            cells = [
                rows[row]["title"],
                str(len(rows[row]["seeds"])),
                _cell(found["accuracy"], 4),
                _cell(found["nll"], 3),
                _cell(found["ece"], 4),
                _cell(found["auroc_predictive_entropy"], 3),
                "" if other is None else f"{_cell(found[other], 3)} {OTHER_SCORES[other]}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(figure: dict[str, float], digits: int) -> str:
    median, low, high = (f"{figure[key]:.{digits}f}".removeprefix("0") for key in ("median", "min", "max"))
    return f"{median} [{low}, {high}]"


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["choose", *RECIPES], default=["choose", *RECIPES])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=HERE.parent / "data", help="holds MNIST and FashionMNIST")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was measured, measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(read(arguments.out)))
        return
    candidates = CANDIDATES
    for name, recipe in RECIPES.items():
        images = Images.of(recipe, arguments.folder)
        if "choose" in arguments.parts:
            found = choose(recipe, images, candidates, arguments.device)
            candidates = {found["chosen"]: CANDIDATES[found["chosen"]]}
            keep(arguments.out, "choose", {name: found}, arguments.device)
        if name in arguments.parts:
            note = note_in(arguments.out, name, arguments.device)
            for seed in arguments.seeds:
                measure(recipe, images, seed, arguments.rows, arguments.device, note)
    print(table(read(arguments.out)))


if __name__ == "__main__":
    main()
