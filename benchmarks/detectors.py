"""What detectors cost beside the forward pass, and our own beside pytorch-ood's: time, memory, numbers, in one run.

    python benchmarks/detectors.py            # about three minutes on two cores
    python benchmarks/detectors.py --rounds 3

Writes benchmarks/results/detectors.json. No data set is loaded and nothing is chosen: weights and features are random,
of the sizes of CLINC150 (15,000 training inputs, 150 classes, 512 features; 1,000 inputs to score).

scorers         hesitant's `knn`, `mahalanobis` and `relative_mahalanobis` and pytorch-ood's KNN, Mahalanobis and RMD on
                the same features: seconds to fit and to score, their ratio, the largest difference of the scores as a
                share of the largest score.
narrow          the two Mahalanobis distances where 512 features lie in 64 directions: AUROC of features in all of them.
                1 is right: such inputs lie outside of what the training data span. And how many scores are below 0.
predict         one call of predict with 1,000 inputs of a network 384-512-150: SNGP, SNGP(ood_score="knn"), and
                FeatureDetectors around a Deterministic; ratios to the Deterministic's own predict.
predict_images  the same of timm's resnet50, 8 images of 224 x 224 and 50,000 neighbours of 2,048 features.
fit_covariance  the pass over 15,000 inputs with and without neighbours, num_inducing 1,024, seconds.
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_ood.detector
import torch
from _measuring import in_turns, machine, medians, peak, ratio, save
from torch import Tensor, nn

from hesitant import SNGP, Deterministic
from hesitant.detection import DETECTORS, FeatureDetector
from hesitant.detection.gaussian_distances import MahalanobisDistance, RelativeMahalanobisDistance
from hesitant.detection.kept_neighbors import NeighborDistance
from hesitant.evaluation import auroc

RESULTS = Path(__file__).parent / "results" / "detectors.json"
TRAINING, SCORED, CLASSES, INPUTS, WIDTH = 15_000, 1_000, 150, 384, 512
OURS: dict[str, Callable[[], Any]] = {
    "knn": NeighborDistance,
    "mahalanobis": MahalanobisDistance,
    "relative_mahalanobis": RelativeMahalanobisDistance,
}
THEIRS: dict[str, Callable[[], Any]] = {
    "knn": lambda: pytorch_ood.detector.KNN(None, k=1),
    "mahalanobis": lambda: pytorch_ood.detector.Mahalanobis(None),
    "relative_mahalanobis": lambda: pytorch_ood.detector.RMD(None),
}


def features(rows: int, seed: int, directions: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Answers features of 150 classes that lie in so many directions, and their classes."""
    shape, noise = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    axes = torch.randn(directions, WIDTH, generator=shape) / directions**0.5
    means = torch.randn(CLASSES, directions, generator=shape)
    targets = torch.arange(rows) % CLASSES
    return (means[targets] + torch.randn(rows, directions, generator=noise)) @ axes, targets


def scorers(rounds: int) -> dict[str, Any]:
    """Answers seconds and differences of ours and theirs."""
    known, targets = features(TRAINING, 0)
    x = features(SCORED, 1)[0] * 1.5
    answer: dict[str, Any] = {}
    for name in OURS:
        ours, theirs = OURS[name](), THEIRS[name]()
        fitting = in_turns(
            {"ours": lambda o=ours: o.fit(known, targets), "theirs": lambda t=theirs: t.fit_features(known, targets)},
            rounds=rounds,
            repeats=1,
            warm_up=1,
        )
        scoring = in_turns(
            {"ours": lambda o=ours: o.score(x), "theirs": lambda t=theirs: t.predict_features(x)},
            rounds=rounds,
            repeats=1,
            warm_up=1,
        )
        own, other = ours.score(x), theirs.predict_features(x).double()
        answer[name] = {
            "fit_ms": medians(fitting),
            "score_ms": medians(scoring),
            "fit_ours_to_theirs": ratio(fitting, "ours", "theirs"),
            "score_ours_to_theirs": ratio(scoring, "ours", "theirs"),
            "largest_difference": float((own - other).abs().max() / other.abs().max()),
        }
        print(name, answer[name], flush=True)
    return answer


def narrow() -> dict[str, Any]:
    """Answers how features outside of the 64 directions of the training data are ranked."""
    known, targets = features(TRAINING, 0, directions=64)
    inside = features(SCORED, 1, directions=64)[0]
    outside = torch.randn(SCORED, WIDTH, generator=torch.Generator().manual_seed(2)) * float(inside.std())
    answer: dict[str, Any] = {}
    for name in ("mahalanobis", "relative_mahalanobis"):
        ours, theirs = OURS[name](), THEIRS[name]()
        ours.fit(known, targets)
        theirs.fit_features(known, targets)
        of_both = {
            "ours": (ours.score(inside), ours.score(outside)),
            "theirs": (theirs.predict_features(inside).double(), theirs.predict_features(outside).double()),
        }
        answer[name] = {
            who: {"auroc": auroc(*scores), "negative": int(sum((s < 0).sum() for s in scores))}
            for who, scores in of_both.items()
        }
    return answer


def network(seed: int = 0) -> nn.Sequential:
    """Answers the network 384-512-150."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))


def inputs(rows: int, seed: int) -> Tensor:
    """Answers inputs of length 1, as sentence embeddings are."""
    return nn.functional.normalize(torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(seed)), dim=1)


def predicting(methods: dict[str, Any], x: Tensor, rounds: int) -> dict[str, Any]:
    """Answers milliseconds of predict, and ratios to the first method's."""
    measured = in_turns({n: lambda m=m: m.predict(x) for n, m in methods.items()}, rounds, repeats=1, warm_up=1)
    first = next(iter(methods))
    return {"ms": medians(measured), f"to {first}": {name: ratio(measured, name, first) for name in methods}}


def predict(rounds: int) -> dict[str, Any]:
    """Answers what each detector adds to a small network's predict."""
    data = inputs(TRAINING, 0), torch.arange(TRAINING) % CLASSES
    plain = Deterministic(network())
    methods: dict[str, Any] = {"Deterministic": plain}
    for score in ("logits", "knn"):
        sngp = SNGP(network(), ood_score=score)
        sngp.fit_covariance(data)
        methods[f"SNGP, {score}"] = sngp
    for name in DETECTORS:
        methods[name] = FeatureDetector(plain, name).fit(data)
    return predicting(methods, inputs(SCORED, 1), rounds)


def predict_images(rounds: int) -> dict[str, Any]:
    """Answers what 50,000 neighbours add to a ResNet-50."""
    import timm

    x = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    plain = Deterministic(timm.create_model("resnet50").eval())
    methods: dict[str, Any] = {"Deterministic": plain}
    for score in ("logits", "knn"):
        torch.manual_seed(0)
        sngp = SNGP(timm.create_model("resnet50").eval(), ood_score=score, norm_bound=None)
        sngp.fit_covariance(x)
        methods[f"SNGP, {score}"] = sngp
    kept = torch.randn(50_000, 2048, generator=torch.Generator().manual_seed(0))
    methods["SNGP, knn"].neighbors.replace(kept)
    return {"neighbours_mib": kept.nbytes / 2**20} | predicting(methods, x, rounds)


def fit_covariance(rounds: int) -> dict[str, Any]:
    """Answers what keeping neighbours adds to the covariance pass."""
    models = {score: SNGP(network(), ood_score=score, norm_bound=None) for score in ("logits", "knn")}
    data = inputs(TRAINING, 0)
    measured = in_turns(
        {score: lambda m=model: m.fit_covariance(data) for score, model in models.items()},
        rounds,
        repeats=1,
        warm_up=1,
    )
    raised = {score: peak(lambda m=model: m.fit_covariance(data)) for score, model in models.items()}
    return {"ms": medians(measured), "ratio": ratio(measured, "knn", "logits"), "peak_mib": raised}


def main() -> None:
    """Measures everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "scorers": lambda: scorers(arguments.rounds),
        "narrow": narrow,
        "predict": lambda: predict(arguments.rounds),
        "predict_images": lambda: predict_images(arguments.rounds),
        "fit_covariance": lambda: fit_covariance(arguments.rounds),
    }
    for name, part in parts.items():
        result = part()
        save(arguments.out, {name: result})
        print(name, result, flush=True)
    save(
        arguments.out,
        {"machine": machine(torch.device("cpu")), "rounds": arguments.rounds, "threads": torch.get_num_threads()},
    )


if __name__ == "__main__":
    main()
