"""The cost of Monte Carlo dropout beside the loop that a user would write, in one run.

    python benchmarks/mc_dropout.py                      # everything, about five minutes on two cores
    python benchmarks/mc_dropout.py --parts grid mnist   # some parts
    python benchmarks/mc_dropout.py --device cuda        # on a GPU

Writes benchmarks/results/mc_dropout.json (mc_dropout_cuda.json on a GPU). The loop puts the dropout modules (BERT: the
whole model, whose attention asks its own flag) into training mode, runs the model as often, and takes mean and standard
deviation of the probabilities. What is measured:

classifier  timm's resnet18 with dropout before its classifier alone, 32 images of 64 x 64, 100 passes.
grid        The SNGP tutorial's network, 10 passes over its grid of 10,000 points.
mnist       784-500-250-10 with dropout .2 before each layer, the input too, 100 passes over 10,000 images.
bert        A BERT of 4 layers of 256, dropout .1 in every layer and in its attention, 32 texts of 64 tokens, 10 passes.
memory      What the mnist part adds to the peak memory, in MiB, in a process of its own.
tiny        Nets of some microseconds, 1 and 128 inputs, 10 and 100 passes: a 2-128-2, one that drops its weights, one
            that looks at its numbers. The loop puts the whole of the second into training mode. In CPU time: a busy
            machine interrupts what takes longer than its turn, and not what is over before.
masks       Nanoseconds a number: torch's dropout, and our masks of 8, 16 and 32 bits a number.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measuring import gflops, in_turns, machine, medians, peak, ratio, save
from torch import Tensor, nn

from hesitant import MCDropout
from hesitant.data import two_moons_grid
from hesitant.methods.dropout.masks import Masks
from hesitant.nn.models import MLP, DeepResNet

RESULTS = Path(__file__).parent / "results"


def user_loop(model: nn.Module, inputs: Tensor, passes: int, *, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Monte Carlo dropout as people write it."""
    model.eval()
    for module in [model] if whole else model.modules():
        if whole or isinstance(module, nn.Dropout):
            module.train()
    with torch.no_grad():
        outputs = [model(inputs) for _ in range(passes)]
        samples = torch.stack([torch.softmax(getattr(out, "logits", out), -1) for out in outputs])
    model.eval()
    return samples.mean(0), samples.std(0)


def compare(
    model: nn.Module,
    inputs: Tensor,
    passes: int,
    device: torch.device,
    *,
    rounds: int,
    whole: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Answers milliseconds and ratio of the loop and of MCDropout, taking turns."""
    model, inputs = model.to(device).eval(), inputs.to(device)
    method = MCDropout(model, num_samples=passes)

    def waiting(task: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            task()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return run

    durations = in_turns(
        {
            "loop": waiting(lambda: user_loop(model, inputs, passes, whole=whole)),
            "MCDropout": waiting(lambda: method.predict(inputs, seed=0)),
        },
        rounds=rounds,
        repeats=1,
        warm_up=1,
        clock=clock,
    )
    return {"milliseconds": medians(durations), "times_faster": ratio(durations, "loop", "MCDropout")}


def classifier(device: torch.device) -> dict[str, Any]:
    """Dropout before the classifier alone."""
    import timm

    images = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return compare(timm.create_model("resnet18", drop_rate=0.2), images, 100, device, rounds=3)


def grid(device: torch.device) -> dict[str, Any]:
    """The tutorial's network."""
    return compare(DeepResNet(2, 2), two_moons_grid(100), 10, device, rounds=15)


def mnist_network() -> tuple[nn.Module, Tensor]:
    """The Keras recipe's network, and 10,000 inputs of the size of its images."""
    model = MLP(784, 10, hidden=(500, 250), dropout=0.2, dropout_input=0.2)
    return model, torch.rand(10_000, 784, generator=torch.Generator().manual_seed(0))


def mnist(device: torch.device) -> dict[str, Any]:
    """The Keras recipe's network."""
    return compare(*mnist_network(), 100, device, rounds=3)


def bert(device: torch.device) -> dict[str, Any]:
    """Dropout in every layer."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, num_labels=3
    )
    tokens = torch.randint(0, config.vocab_size, (32, 64), generator=torch.Generator().manual_seed(0))
    return compare(BertForSequenceClassification(config), tokens, 10, device, rounds=7, whole=True)


class DropConnect(nn.Module):
    """Drops weights, by hand."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.first, self.second, self.p = nn.Linear(2, 128), nn.Linear(128, 2), p

    def forward(self, x: Tensor) -> Tensor:
        """Answers logits."""
        weight = self.second.weight
        if self.training:
            weight = weight * torch.bernoulli(torch.full_like(weight, 1 - self.p)) / (1 - self.p)
        return nn.functional.linear(torch.relu(self.first(x)), weight, self.second.bias)


class LooksAtNumbers(nn.Module):
    """Goes one way or another by what dropout left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(2, 128), nn.Dropout(0.5), nn.Linear(128, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Answers logits."""
        hidden = self.drop(torch.relu(self.first(x)))
        return self.second(hidden.tanh() if hidden.sum() > 30 * len(x) else hidden)


def tiny(device: torch.device) -> dict[str, Any]:
    """Small nets."""
    nets: dict[str, nn.Module] = {
        "2-128-2": nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 2)),
        "dropped weights": DropConnect(),
        "looks at numbers": LooksAtNumbers(),
    }
    inputs = torch.randn(128, 2, generator=torch.Generator().manual_seed(0))
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    return {
        f"{name}, {rows} rows, {passes} passes": compare(
            net, inputs[:rows], passes, device, rounds=51, whole=isinstance(net, DropConnect), clock=clock
        )
        for name, net in nets.items()
        for rows in (1, 128)
        for passes in (10, 100)
    }


def memory() -> float:
    """What the mnist part adds to the peak."""
    command = [sys.executable, __file__, "--peak"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak() -> None:
    """Prints the MiB that predicting the mnist part adds to the peak of this process."""
    model, images = mnist_network()
    method = MCDropout(model.eval(), num_samples=100)
    method.predict(images[:10], seed=0)
    print(peak(lambda: method.predict(images, seed=0)))


def masks() -> dict[str, float]:
    """Nanoseconds for each number of a mask."""
    x, cpu = torch.randn(1024, 784), torch.device("cpu")
    streams = Masks([(0,)])
    tasks: dict[str, Callable[[], Any]] = {"torch.dropout": lambda: torch.dropout(x, 0.2, True)}
    for name, rate in (("8 bits", 0.5), ("16 bits", 0.2), ("32 bits", 0.001)):
        tasks[name] = lambda rate=rate: streams.draw(x.shape, rate, cpu)
    durations = in_turns(tasks, rounds=20, repeats=3)
    return {name: milliseconds * 1e6 / x.numel() for name, milliseconds in medians(durations).items()}


def main() -> None:
    """Measures what the command line asks for."""
    timed = {"classifier": classifier, "grid": grid, "mnist": mnist, "bert": bert, "tiny": tiny}
    others: dict[str, Callable[[], Any]] = {"memory": memory, "masks": masks}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*timed, *others], default=[*timed, *others])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak()
        return
    out = arguments.out or RESULTS / ("mc_dropout.json" if arguments.device.type == "cpu" else "mc_dropout_cuda.json")
    for name in arguments.parts:
        result = timed[name](arguments.device) if name in timed else others[name]()
        save(out, {name: result, "machine": machine(arguments.device), "gflops_2048": gflops()})
        print(name, result)


if __name__ == "__main__":
    main()
