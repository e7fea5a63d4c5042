"""What `calibrate` does to every method, and which rule keeps an SNGP's distance awareness, over ten seeds.

    python benchmarks/temperature.py                        # both tasks, about fifteen minutes on one core
    python benchmarks/temperature.py --tasks two-moons --seeds 3

Writes benchmarks/results/temperature.json. Calibration data, test data and training data are apart: on two moons 1,000
fresh points each, on the digits the two halves of the held-out scans. Out-of-domain data have a part in nothing but the
figures: u is the predictive variance over its greatest value, AUROC is by u. The rows:

deterministic, mc_dropout, ensemble, sngp   The demo's methods (the ensemble with three members), calibrated.
tutorial_sngp   Two moons alone: the SNGP tutorial's protocol by the letter, under-confident on its own data.

Of each SNGP, `rules` says what other ways of fitting come to on the test data:

ours             `calibrate`: the largest factor whose NLL is next to the least, with its temperature.
ladder_1000      The same with a ladder that goes on to 1,000.
best             The factor of least NLL, with its temperature, which stays no sharper than N inputs support.
nll              The factor and the temperature of least NLL, and nothing else, within [1/100, 100].
factor_alone     The factor of least NLL, the temperature 1.
temperature_alone   The temperature of least NLL, the factor as the model was made.
"""

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _measuring import machine
from torch import Tensor
from torch.utils.data import TensorDataset
from two_moons import train_tutorial_sngp

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout, Prediction, fit
from hesitant.data import digits, two_moons, two_moons_ood
from hesitant.demos.digits import BATCH_SIZE, EPOCHS, LEARNING_RATE, NUM_CLASSES, SIDE, SNGP_SETTINGS
from hesitant.demos.methods import NUM_SAMPLES, Task, train_sngp
from hesitant.demos.result import uncertainty
from hesitant.demos.two_moons import two_moons_task
from hesitant.evaluation import accuracy, auroc, ece, nll
from hesitant.evaluation.calibration.calibrate import MEAN_FIELD_FACTORS, CalibrationWarning, calibrate
from hesitant.evaluation.calibration.components import components_of
from hesitant.evaluation.calibration.likelihood import BOUNDS, likelihood
from hesitant.evaluation.calibration.sample import Held
from hesitant.inputs import as_batch
from hesitant.nn.models import DeepResNet

RESULTS = Path(__file__).parent / "results" / "temperature.json"
NUM_MEMBERS = 3
FINE = [math.exp(step / 10) for step in range(-46, 47)]  # temperatures from 1/100 to 100, for the rules without a rule


@dataclass(frozen=True)
class Data:
    """A task, and what is asked once it is learnt; inputs with targets, and out-of-domain inputs."""

    task: Task
    calibration: TensorDataset
    test: TensorDataset
    ood: Tensor


def two_moons_data(seed: int) -> Data:
    """Two moons, as in the demo."""
    generator = torch.Generator().manual_seed(seed)
    task = two_moons_task(generator, seed=seed)
    parts = [two_moons(1000, generator=generator) for _ in range(2)]
    calibration, test = (TensorDataset(part.inputs, part.targets) for part in parts)
    return Data(task, calibration, test, two_moons_ood(500, generator=generator))


def digits_data(seed: int) -> Data:
    """The digits 0 to 7, as in the demo; half of its held-out scans to calibrate with."""
    generator = torch.Generator().manual_seed(seed)
    data = digits(generator=generator)
    task = Task(
        build_network=lambda generator: DeepResNet(SIDE * SIDE, NUM_CLASSES, generator=generator),
        train_data=data.train,
        sngp_settings=SNGP_SETTINGS,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        seed=seed,
        device="cpu",
        progress=False,
    )
    inputs, targets = data.test.tensors
    order = torch.randperm(len(inputs), generator=generator)
    halves = [TensorDataset(inputs[rows], targets[rows]) for rows in order.chunk(2)]
    return Data(task, *halves, data.ood)


TASKS: dict[str, Callable[[int], Data]] = {"two-moons": two_moons_data, "digits": digits_data}


def trained(task: Task, name: str) -> dict[str, Any]:
    """Answers the methods, trained."""

    def fitted(model: Any) -> Any:
        fit(
            model,
            task.train_data,
            epochs=task.epochs,
            batch_size=task.batch_size,
            learning_rate=task.learning_rate,
            seed=task.seed,
            device="cpu",
            progress=False,
        )
        return model

    plain = fitted(Deterministic(task.build_network(task.generator())))
    ensemble = DeepEnsemble.from_builder(lambda: task.build_network(None), NUM_MEMBERS, seed=task.seed)
    methods = {
        "deterministic": plain,
        "mc_dropout": MCDropout(plain.model, num_samples=NUM_SAMPLES),
        "ensemble": fitted(ensemble),
        "sngp": train_sngp(task)[0],
    }
    return methods | ({"tutorial_sngp": train_tutorial_sngp(task)[0]} if name == "two-moons" else {})


def figures(predict: Callable[[Any], Prediction], data: Data) -> dict[str, float]:
    """Answers the figures of a model as it stands."""
    test, ood = predict(data.test), predict(data.ood)
    in_domain, outside = uncertainty(test), uncertainty(ood)
    return {
        "accuracy": accuracy(test),
        "nll": nll(test),
        "ece": ece(test),
        "u_test": float(in_domain.mean()),
        "u_ood": float(outside.mean()),
        "auroc": auroc(in_domain, outside),
    }


def rules(model: SNGP, data: Data) -> dict[str, dict[str, float]]:
    """Answers the figures of an uncalibrated SNGP under each rule."""
    held = Held()
    held.append(components_of(model, as_batch(data.calibration.tensors), seed=0, position=0))
    own = model.gp.mean_field_factor

    def loss(temperature: float, factor: float | None) -> float:
        return float(likelihood(held, temperature, factor).losses.mean())

    ladder = [0.0, *MEAN_FIELD_FACTORS]
    by_nll = min(((t, f) for f in ladder for t in FINE if BOUNDS[0] <= t <= BOUNDS[1]), key=lambda pair: loss(*pair))
    answers = {
        "nll": by_nll,
        "factor_alone": (1.0, min(ladder, key=lambda factor: loss(1.0, factor))),
        "temperature_alone": (min(FINE, key=lambda temperature: loss(temperature, own)), own),
    }
    # The factor of least NLL among those whose temperature is the one that `calibrate` gives to it.
    single = [_calibrated(model, data, (factor,)) for factor in ladder]
    answers["best"] = min(single, key=lambda pair: loss(*pair))
    answers["ours"] = _calibrated(model, data, MEAN_FIELD_FACTORS)
    answers["ladder_1000"] = _calibrated(model, data, (*MEAN_FIELD_FACTORS, 215.0, 464.0, 1000.0))
    found = {}
    for name, (temperature, factor) in answers.items():
        model.temperature, model.gp.mean_field_factor = temperature, factor
        found[name] = {"temperature": temperature, "factor": factor, **figures(model.predict, data)}
    model.temperature, model.gp.mean_field_factor = 1.0, own
    return found


def _calibrated(model: SNGP, data: Data, factors: tuple[float, ...]) -> tuple[float, float]:
    """Answers the temperature and factor of `calibrate`, and leaves the model as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        answer = calibrate(model, data.calibration, mean_field_factors=factors)
    model.forget_calibration()
    assert answer.mean_field_factor is not None
    return answer.temperature, answer.mean_field_factor


def run(name: str, seed: int) -> dict[str, Any]:
    """Answers the figures of all methods before and after, for one seed."""
    data = TASKS[name](seed)
    rows: dict[str, Any] = {}
    for key, model in trained(data.task, name).items():

        def predict(inputs: Any, model: Any = model) -> Prediction:
            return model.predict(inputs, **({"seed": 0} if isinstance(model, MCDropout) else {}))

        row: dict[str, Any] = {"before": figures(predict, data)}
        if isinstance(model, SNGP):
            row["rules"] = rules(model, data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            answer = calibrate(model, data.calibration)
        row["after"] = {"temperature": answer.temperature, "bounded": float(answer.bounded), **figures(predict, data)}
        if answer.mean_field_factor is not None:
            row["after"]["factor"] = answer.mean_field_factor
        rows[key] = row
        before, after = row["before"], row["after"]
        print(
            f"{name}, seed {seed}, {key}: {answer}; test NLL {before['nll']:.4f} -> {after['nll']:.4f},"
            f" ECE {before['ece']:.4f} -> {after['ece']:.4f}, u out-of-domain {before['u_ood']:.4f} ->"
            f" {after['u_ood']:.4f}, AUROC {before['auroc']:.4f} -> {after['auroc']:.4f}",
            flush=True,
        )
    return rows


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers median, least and greatest of each number, with the names as they are nested."""
    first = seeds[0]
    if not isinstance(first, dict):
        return {"median": statistics.median(seeds), "min": min(seeds), "max": max(seeds)}
    return {key: summary([seed[key] for seed in seeds]) for key in first}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name in arguments.tasks:
        found = []
        for seed in range(arguments.seeds):
            found.append(run(name, seed))
            results[name] = {"seeds": len(found), **summary(found)}
            results["machine"] = machine(torch.device("cpu"))
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
