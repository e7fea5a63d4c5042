"""Small ones of the networks that people have, as files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tests.integrations.export.exported import ask, session
from tests.methods.small_transformers import DISTIL, GPT, TEXT
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

import hesitant


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, 2, dropout=0.3, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x)[0][:, -1])


def text(rows: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


Case = tuple[Callable[[], nn.Module], Any, Any, dict[str, Any]]
ONE_LAYER = {"num_hidden_layers": 1}
CASES: dict[str, Case] = {
    "lstm": (Recurrent, numbers(6, 5, 4), numbers(3, 9, 4), {"sequence_axis": 1}),
    "bert": (
        lambda: BertForSequenceClassification(BertConfig(**TEXT | ONE_LAYER, num_labels=3)),
        text(6, 7), text(4, 11), {},
    ),
    "distilbert": (
        lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL | {"n_layers": 1}, num_labels=3)),
        text(6, 7), text(4, 11), {},
    ),
    "gpt2": (
        lambda: GPT2ForSequenceClassification(
            GPT2Config(**GPT | {"n_layer": 1}, num_labels=3, bos_token_id=0, eos_token_id=0)
        ),
        text(6, 7), text(4, 11), {},
    ),
    "vit": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_classes=3, drop_rate=0.2, attn_drop_rate=0.1
        ),
        numbers(6, 3, 32, 32), numbers(3, 3, 32, 32), {},
    ),
}  # fmt: skip


def as_inputs(x: Any, path: Path) -> dict[str, Tensor]:
    return x if isinstance(x, dict) else {session(path).get_inputs()[0].name: x}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:norm_bound bounds")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sngp_by_onnx_runtime_at_other_lengths(case: Case, tmp_path: Path) -> None:
    build, example, other, options = case
    torch.manual_seed(0)
    method = hesitant.SNGP(build().eval(), num_inducing=64, norm_bound=None).eval()
    method.fit_covariance(example)
    path = hesitant.export(method, tmp_path / "model.onnx", example, **options)
    for x in (example, other):
        answers, prediction = ask(path, as_inputs(x, path)), method.predict(x)
        torch.testing.assert_close(answers["probs"], prediction.probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(answers["uncertainty"], prediction.ood_score, atol=1e-5, rtol=0)
        torch.testing.assert_close(answers["logit_variance"], prediction.logit_variance, atol=1e-6, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_dropout_of_mc_dropout_survives_at_other_lengths(case: Case, tmp_path: Path) -> None:
    build, example, other, options = case
    torch.manual_seed(0)
    method = hesitant.MCDropout(build().eval(), 60)
    path = hesitant.export(method, tmp_path / "model.onnx", example, **options)
    asked = session(path)
    for x in (example, other):
        given = {name: tensor.numpy() for name, tensor in as_inputs(x, path).items()}
        first, again = (torch.from_numpy(asked.run(["probs"], given)[0]) for _ in range(2))
        prediction = method.predict(x)
        assert bool((first != again).any())
        assert bool(((first - prediction.probs).abs() <= 8 * prediction.class_std * (2 / 60) ** 0.5 + 1e-4).all())
