"""CLINC150: 150 intents of questions, and 1,000 questions of no intent to detect; on MiniLM, frozen and fine-tuned.

    python benchmarks/clinc150.py                            # everything, from data/clinc150/data_full.json
    python benchmarks/clinc150.py --parts frozen --seeds 0 --rows deterministic sngp
    python benchmarks/clinc150.py --phases choose            # or measure; see _real_data.py
    python benchmarks/clinc150.py --table                    # what was measured, as Markdown for docs/figures.md

Writes benchmarks/results/clinc150.json, after each row and seed; what a kill leaves undone a second call does. Parts:

frozen     Five seeds on embeddings (the mean over MiniLM's tokens, of norm 1), made once and kept in data/embeddings.
           The network is 384-512-150 with ReLU and dropout .1; `sngp_linear` has no hidden layer, and `logistic` is
           scikit-learn's regression, its C chosen on the validation data.
finetuned  Three seeds end to end. First the classifier alone, a Linear on the frozen encoder's features, then all of it
           (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
           ICLR): 3 epochs, batches of 32 questions of like length, AdamW at 2e-4, bf16, dropout .1 before the
           classifier. An SNGP is put around the network whose classifier is trained. The recipe control, and ensembles
           of the three seeds' networks, are of the first seed.

SNGP and `fit` are at their defaults but for the epochs, which all networks share. The half of the validation split that
`tune` is, and it alone, said how many epochs and what rate (of plain networks), C, temperatures and factors. The
choosing phase reads the splits `train` and `val`; the measuring phase `test` and `oos_test`. `oos_train` and `oos_val`
are never read.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _real_data import Known, Row, Study, Unseen, bounded, choose, detector_rows, measure, read, standard_rows
from _sentences import WIDTH, BatchesOfLikeLength, clinc150_texts, embeddings, minilm, pooled
from _tables import tables
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hesitant import SNGP, Deterministic, fit
from hesitant.data import split
from hesitant.files import replacing

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "clinc150.json"
TITLES = {"frozen": "CLINC150, frozen MiniLM", "finetuned": "CLINC150, fine-tuned MiniLM", "oos": "out of scope"}
NUM_CLASSES = 150
SEEDS = {"frozen": 5, "finetuned": 3}
EPOCHS = {"frozen": 20, "finetuned": 3}
BATCH_SIZE, LEARNING_RATE = 32, 2e-4  # of fine-tuning
REGULARISATIONS = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C, of norm-1 inputs
NUM_TIMED = 512
OF_EMBEDDINGS = {"knn": "kNN", "relative_mahalanobis": "relative Mahalanobis"}


def network(hidden: int | None, num_classes: int) -> nn.Module:
    """Answers the classifier of frozen embeddings: with a hidden layer, or one Linear."""
    if hidden is None:
        return nn.Sequential(nn.Linear(WIDTH, num_classes))
    return nn.Sequential(nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(hidden, num_classes))


def build_frozen(num_classes: int, kind: str, number: int) -> nn.Module:
    """Answers an untrained model on embeddings."""
    torch.manual_seed(number)
    model = network(None if kind in ("sngp_linear", "logistic") else 512, num_classes)
    if kind.startswith("sngp"):
        return SNGP(model, generator=torch.Generator().manual_seed(number))
    return bounded(model, "3") if kind == "control" else model


def train_frozen(epochs: int, model: nn.Module, known: Known, kind: str, number: int) -> None:
    """Trains a model on embeddings: all alike, at the defaults of `fit`, but for the logistic regression."""
    if kind == "logistic":
        logistic_regression(model[0], known)  # type: ignore[index]
    else:
        fit(model, known.train, epochs=epochs, seed=number, device="cpu", progress=False)


@torch.no_grad()
def logistic_regression(linear: nn.Linear, known: Known) -> None:
    """Fits scikit-learn's regression, with the C of least NLL on the tuning data, and writes it into a Linear."""
    from sklearn.linear_model import LogisticRegression

    inputs, targets = known.train
    found = []
    for strength in REGULARISATIONS:
        regression = LogisticRegression(C=strength, max_iter=1000).fit(inputs.numpy(), targets.numpy())
        linear.weight.copy_(torch.from_numpy(regression.coef_))
        linear.bias.copy_(torch.from_numpy(regression.intercept_))
        loss = float(nn.functional.cross_entropy(linear(known.tune[0]), known.tune[1]))
        found.append((loss, linear.weight.clone(), linear.bias.clone()))
    _, weight, bias = min(found, key=lambda each: each[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def frozen_rows() -> dict[str, Row]:
    """Answers the rows on frozen embeddings."""
    rows = {
        **standard_rows(num_members=10, num_passes=100),
        "logistic": Row("logistic regression", "logistic", lambda models: Deterministic(models[0]), seeds=(0,)),
        "sngp_linear": Row("SNGP of one Linear", "sngp_linear", lambda models: models[0]),
    }
    return rows | detector_rows(rows, "logistic", OF_EMBEDDINGS)


def frozen_study(work: Path, epochs: int) -> Study:
    """Answers the study on frozen embeddings."""
    settings = {"epochs": epochs, "network": "384-512-C, ReLU, dropout .1", "validation": "1,500 tune, 1,500 defer"}
    build, train = partial(build_frozen, NUM_CLASSES), partial(train_frozen, epochs)
    return Study("frozen", frozen_rows(), build, train, work, settings)


def known_embeddings(split_of: Callable[[str], tuple[Tensor, Tensor]]) -> Known:
    """Answers what the choosing phase is given."""
    tune, defer = split(split_of("val"), [0.5, 0.5])
    return Known(split_of("train"), tune, defer)


def unseen_embeddings(split_of: Callable[[str], tuple[Tensor, Tensor]], ood: Mapping[str, str]) -> Unseen:
    """Answers what the measuring phase alone is given: `ood` names the split of each set."""
    test = split_of("test")
    return Unseen(test, {name: split_of(of)[0] for name, of in ood.items()}, test[0][:NUM_TIMED], NUM_TIMED)


class SentenceClassifier(nn.Module):
    """MiniLM, the mean over its tokens, dropout and a Linear: what a user would fine-tune."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.encoder = minilm()[1]
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(WIDTH, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Answers logits `(B, C)` of tokens `(B, T)`."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.classifier(self.dropout(pooled(hidden, attention_mask)))


def trained_classifier(work: Path, folder: Path, number: int) -> dict[str, Tensor]:
    """Answers weight and bias of a Linear that was trained on the frozen encoder's features, once for each number."""
    kept = work / f"classifier-{number}.pt"
    if not kept.exists():
        texts = partial(clinc150_texts, folder, "train")
        inputs, targets = embeddings(work / "features-train.npz", texts, normalised=False)
        torch.manual_seed(number)
        linear = nn.Linear(WIDTH, NUM_CLASSES)
        fit(linear, (inputs, targets), epochs=EPOCHS["frozen"], seed=number, device="cpu", progress=False)
        with replacing(kept) as unfinished:
            torch.save(linear.state_dict(), unfinished)
    weights: dict[str, Tensor] = torch.load(kept, weights_only=True)
    return weights


def build_finetuned(classifier: Callable[[int], dict[str, Tensor]], kind: str, number: int) -> nn.Module:
    """Answers a model with MiniLM's weights, and a classifier that was trained on its features."""
    torch.manual_seed(number)
    model = SentenceClassifier(NUM_CLASSES)
    model.classifier.load_state_dict(classifier(number))
    if kind == "sngp":
        return SNGP(model, generator=torch.Generator().manual_seed(number))
    return bounded(model, "classifier") if kind == "control" else model


def train_finetuned(device: str, model: nn.Module, known: Known, kind: str, number: int) -> None:
    """Fine-tunes a model, all kinds alike, in an order of its own."""
    lengths = [len(text) for text, _ in known.train.dataset]
    order = BatchesOfLikeLength(lengths, BATCH_SIZE, torch.Generator().manual_seed(number))
    fit(
        model,
        DataLoader(known.train.dataset, batch_sampler=order, collate_fn=known.train.collate_fn),
        epochs=EPOCHS["finetuned"],
        learning_rate=LEARNING_RATE,
        mixed_precision="bf16",
        seed=number,
        device=device,
        progress=False,
    )


def batches(texts: list[str], targets: Tensor | None) -> "DataLoader[Any]":
    """Answers batches of tokens, padded to the longest text of each, with targets where they are known."""
    tokenizer = minilm()[0]

    def collated(rows: list[tuple[str, int]]) -> dict[str, Tensor]:
        tokens = tokenizer([text for text, _ in rows], padding=True, truncation=True, return_tensors="pt")
        batch = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return batch if targets is None else {**batch, "labels": torch.tensor([target for _, target in rows])}

    rows: Any = list(zip(texts, [-1] * len(texts) if targets is None else targets.tolist(), strict=True))
    return DataLoader(rows, batch_size=BATCH_SIZE, collate_fn=collated, generator=torch.Generator())


def finetuned_study(work: Path, folder: Path, device: str) -> Study:
    """Answers the study end to end."""
    rows = standard_rows(num_members=3, num_passes=10, ensembles=(0,))
    rows |= {name: replace(rows[name], seeds=(0,)) for name in ("control", "control_ddu")}
    settings = {
        "epochs": EPOCHS["finetuned"],
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "mixed_precision": "bf16",
        "classifier": f"trained on frozen features first, {EPOCHS['frozen']} epochs",
    }
    build = partial(build_finetuned, partial(trained_classifier, work / "finetuned", folder))
    return Study("finetuned", rows, build, partial(train_finetuned, device), work, settings)


def known_texts(folder: Path) -> Known:
    """Answers what the choosing phase is given."""
    train, (texts, targets) = clinc150_texts(folder, "train"), clinc150_texts(folder, "val")
    tune, defer = split((torch.arange(len(texts)), targets), [0.5, 0.5])
    halves = [batches([texts[row] for row in rows.tolist()], classes) for rows, classes in (tune, defer)]
    return Known(batches(*train), *halves)


def unseen_texts(folder: Path) -> Unseen:
    """Answers what the measuring phase alone is given."""
    texts, targets = clinc150_texts(folder, "test")
    ood = {"oos": batches(clinc150_texts(folder, "oos_test")[0], None)}
    return Unseen(batches(texts, targets), ood, batches(texts[:NUM_TIMED], None), NUM_TIMED)


def main() -> None:
    """Chooses and measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--phases", nargs="+", choices=["choose", "measure"], default=["choose", "measure"])
    parser.add_argument("--rows", nargs="+", choices=list(frozen_rows()), default=list(frozen_rows()))
    parser.add_argument("--seeds", nargs="+", type=int, help="by default 0 to 4 for frozen, 0 to 2 for finetuned")
    parser.add_argument("--epochs", type=int, default=EPOCHS["frozen"], help="of the frozen part")
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "clinc150", help="holds data_full.json")
    parser.add_argument("--embeddings", type=Path, default=ROOT / "data" / "embeddings", help="made where they lack")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "data" / "work" / "clinc150", help="remove it to start anew"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the finetuned part")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what was measured, measure nothing")
    arguments = parser.parse_args()

    def split_of(name: str) -> tuple[Tensor, Tensor]:
        kept = arguments.embeddings / f"clinc150-{name}.npz"
        return embeddings(kept, lambda: clinc150_texts(arguments.folder, name))

    for part in [] if arguments.table else arguments.parts:
        frozen, device = part == "frozen", "cpu" if part == "frozen" else arguments.device
        if frozen:
            study = frozen_study(arguments.work, arguments.epochs)
        else:
            study = finetuned_study(arguments.work, arguments.folder, device)
        rows = [row for row in arguments.rows if row in study.rows]
        seeds = arguments.seeds or range(SEEDS[part])
        known = known_embeddings(split_of) if frozen else known_texts(arguments.folder)
        if "choose" in arguments.phases:
            for seed in seeds:
                choose(study, known, seed, rows)
        if "measure" in arguments.phases:
            unseen = unseen_embeddings(split_of, {"oos": "oos_test"}) if frozen else unseen_texts(arguments.folder)
            for seed in seeds:
                measure(study, known, unseen, seed, rows, device, arguments.out)
    print(tables(read(arguments.out), TITLES))


if __name__ == "__main__":
    main()
