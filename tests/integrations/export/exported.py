"""Small networks, and a file of ONNX asked by ONNX Runtime."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

import hesitant
from hesitant.inputs import Batch, batches
from hesitant.integrations.export.example import Example
from hesitant.integrations.export.named_answers import NamedAnswers, graph_of, model_of


def network(seed: int = 0, classes: int = 3, width: int = 16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, width),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(width, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(8, classes),
        ).eval()


def inputs(rows: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def sngp(seed: int = 0, **options: Any) -> hesitant.SNGP:
    net = network(seed, classes=options.pop("classes", 3))
    generator = torch.Generator().manual_seed(seed)
    method = hesitant.SNGP(net, num_inducing=options.pop("num_inducing", 64), generator=generator, **options).eval()
    method.fit_covariance(inputs(200))
    return method


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def ask(path: Path, given: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    asked = session(path)
    if isinstance(given, Tensor):
        given = {asked.get_inputs()[0].name: given}
    names = [output.name for output in asked.get_outputs()]
    answers = asked.run(names, {name: tensor.numpy() for name, tensor in given.items()})
    return dict(zip(names, map(torch.from_numpy, answers), strict=True))


def graph(method: Any, example: Any, policy: Any = None) -> NamedAnswers:
    """The module that is exported, by itself."""
    batch = next(iter(batches(example)))
    asked = Example.of(Batch(batch.args, batch.kwargs), model_of(method), "tokens")
    inside = graph_of(method, asked.with_fixed(), asked.dynamic)
    return NamedAnswers(method, inside, policy, fixed=asked.fixed, takes_masks=False)


def copies(method: Any, number: int) -> list[Any]:
    return [copy.deepcopy(method) for _ in range(number)]
