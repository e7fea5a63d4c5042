"""What `predict` costs one caller who sends one input: beside the forward pass that it cannot do without, in one run.

    python benchmarks/latency.py                                # everything, about ten minutes on two cores
    python benchmarks/latency.py --models vit_tiny --rounds 50  # some models
    python benchmarks/latency.py --device cuda                  # on a GPU

Writes benchmarks/results/latency.json (latency_cuda.json on a GPU). The models have random weights: milliseconds do not
depend on them. Beside each method stands the same plain model in eval mode, `with torch.no_grad(): model(x)`. They take
turns; a ratio is the median over the rounds of a method's time over the plain model's in the same round. A turn of the
methods that run the model once is five calls: only the first of them finds the weights of another in the caches. A turn
of MCDropout and of DeepEnsemble is one call, in a third as many rounds. What is asked, one input each:

resnet50  timm's ResNet-50, an image of 224 x 224, dropout before its classifier.
bert      a BERT-base (12 layers of 768), a text of 64 tokens as a dict, dropout in every layer and in its attention.
vit_tiny  timm's vit_tiny_patch16_224 for images of 64 x 64, dropout before its classifier and in its blocks.

A ratio `to_one_forward` is to one forward pass; MCDropout's and DeepEnsemble's `to_as_many_forwards` is to as many as
they average: 10 passes, 4 members. DeepEnsemble's members are plain models. The goals are those of one forward pass.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measuring import gflops, in_turns, machine, medians, ratio, save
from torch import nn

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout

RESULTS = Path(__file__).parent / "results"
PASSES, MEMBERS = 10, 4
CALLS = 5  # in a turn of a method that runs the model once
FITTED_ON = 8  # inputs of SNGP's covariance
GOALS = {"resnet50": 1.10, "bert": 1.10, "vit_tiny": 1.30}  # of Deterministic and SNGP, to one forward pass
Inputs = torch.Tensor | dict[str, torch.Tensor]


def resnet50() -> nn.Module:
    """An image model whose forward pass is long."""
    import timm

    return timm.create_model("resnet50", drop_rate=0.2)


def bert() -> nn.Module:
    """A text model; its input is a dict."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(num_labels=3))


def vit_tiny() -> nn.Module:
    """A model whose forward pass is short, beside which nothing is cheap."""
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=64, drop_rate=0.1, proj_drop_rate=0.1)


def images(size: int) -> Callable[[int], Inputs]:
    """Answers what draws images of this size."""
    return lambda number: torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def texts(number: int) -> Inputs:
    """Answers texts of 64 tokens."""
    tokens = torch.randint(0, 30_000, (number, 64), generator=torch.Generator().manual_seed(0))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs]]] = {
    "resnet50": (resnet50, images(224)),
    "bert": (bert, texts),
    "vit_tiny": (vit_tiny, images(64)),
}


def on(device: torch.device, inputs: Inputs) -> Inputs:
    """Answers the inputs on a device, where a service would have them, too."""
    if isinstance(inputs, dict):
        return {name: tensor.to(device) for name, tensor in inputs.items()}
    return inputs.to(device)


def asked(model: nn.Module, inputs: Inputs) -> Any:
    """One forward pass as people write it."""
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def seeded(build: Callable[[], nn.Module], device: torch.device, seed: int) -> nn.Module:
    """Answers a model on a device in eval mode, its weights from a seed."""
    torch.manual_seed(seed)
    return build().to(device).eval()


def measure(name: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Answers milliseconds and ratios of one model's plain forward pass and of all methods around it."""
    build, draw = MODELS[name]
    plain = seeded(build, device, 0)
    inputs = on(device, draw(1))
    sngp = SNGP(seeded(build, device, 0)).eval()
    sngp.fit_covariance(on(device, draw(FITTED_ON)))
    members = [plain, *(seeded(build, device, seed) for seed in range(1, MEMBERS))]
    once: dict[str, Any] = {"Deterministic": Deterministic(plain).eval(), "SNGP": sngp}
    several: dict[str, Any] = {
        "MCDropout": MCDropout(plain, num_samples=PASSES).eval(),
        "DeepEnsemble": DeepEnsemble(members).eval(),
    }

    def waiting(task: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            task()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    def beside_forward(methods: dict[str, Any], rounds: int, repeats: int) -> dict[str, list[float]]:
        tasks = {"forward": waiting(lambda: asked(plain, inputs))}
        for method_name, method in methods.items():
            tasks[method_name] = waiting(lambda method=method: method.predict(inputs))
        return in_turns(tasks, rounds=rounds, repeats=repeats, warm_up=3)

    ran_once = beside_forward(once, rounds, CALLS)
    ran_often = beside_forward(several, max(1, rounds // 3), 1)
    to_one = {method: ratio(ran_once, method, "forward") for method in once}
    to_one |= {method: ratio(ran_often, method, "forward") for method in several}
    return {
        "milliseconds": {**medians(ran_often), **medians(ran_once)},  # of forward, those of the longer run
        "to_one_forward": to_one,
        "to_as_many_forwards": {
            "MCDropout": to_one["MCDropout"] / PASSES,
            "DeepEnsemble": to_one["DeepEnsemble"] / MEMBERS,
        },
        "goal": GOALS[name],
        "met": {method: to_one[method] <= GOALS[name] for method in once},
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / ("latency.json" if arguments.device.type == "cpu" else "latency_cuda.json")
    for name in arguments.models:
        result = measure(name, arguments.device, arguments.rounds)
        save(out, {name: result, "machine": machine(arguments.device), "gflops_2048": gflops()})
        print(name, result)


if __name__ == "__main__":
    main()
