"""Elsewhere than on the machine that saved it, a model answers within what docs/save-and-load.md states."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.saving.models import NETWORKS, fit_covariances, seeded, sngp
from torch import Tensor

import hesitant

STATED = {
    "threads": (1e-5, 1e-5),
    ".double()": (1e-4, 1e-5),
    ".half()": (1e-2, 5e-3),
    ".bfloat16()": (5e-2, 2e-2),
}


def test_these_are_the_tolerances_that_the_page_states() -> None:
    page = (Path(__file__).parents[3] / "docs" / "save-and-load.md").read_text()
    rows = re.findall(r"^\| `?([.\w()]+)[^|]*\| ([\d.e-]+) \| ([\d.e-]+) \|$", page, flags=re.MULTILINE)
    assert {what: (float(probs), float(variance)) for what, probs, variance in rows} == STATED


def cast(data: Any, dtype: torch.dtype) -> Any:
    if isinstance(data, dict):
        return {name: cast(value, dtype) for name, value in data.items()}
    return data.to(dtype) if data.is_floating_point() else data


def with_threads(model: Any, data: Any) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(3 - min(before, 2))
    try:
        return model.predict(data, batch_size=5)
    finally:
        torch.set_num_threads(before)


ELSEWHERE: dict[str, Callable[[Any, Any], Any]] = {
    "threads": with_threads,
    ".double()": lambda model, data: model.double().predict(cast(data, torch.float64)),
    ".half()": lambda model, data: model.half().predict(cast(data, torch.float16)),
    ".bfloat16()": lambda model, data: model.bfloat16().predict(cast(data, torch.bfloat16)),
}


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
@pytest.mark.parametrize("network", ["mlp", "bert", "timm_resnet18", "timm_vit_tiny"])
def test_it_answers_within_the_tolerance(network: str, elsewhere: str, tmp_path: Path) -> None:
    make, inputs, options = NETWORKS[network]
    method = sngp(seeded(make))
    method.start_from_classifier(inputs())
    fit_covariances(method, inputs())
    method.save_pretrained(tmp_path, **options)
    expected = method.predict(inputs())
    answer = ELSEWHERE[elsewhere](hesitant.load(tmp_path), inputs())
    probs, variance = STATED[elsewhere]
    assert largest(answer.probs.double() - expected.probs.double()) <= probs
    assert largest(answer.logit_variance.double() / expected.logit_variance.double() - 1) <= variance
