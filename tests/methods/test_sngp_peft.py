"""SNGP and PEFT, the one within the other: the head trains, and merging leaves a working model."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from tests.methods.small_transformers import TEXT
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hesitant import SNGP, fit
from hesitant.methods import FrozenHeadWarning

TOKENS = {
    "input_ids": torch.arange(24).reshape(4, 6) % 50,
    "attention_mask": torch.ones(4, 6, dtype=torch.long),
    "labels": torch.tensor([0, 1, 2, 0]),
}
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
SAVED: list[dict[str, Any]] = [{"modules_to_save": ["classifier"]}, {"task_type": TaskType.SEQ_CLS}]


def bert() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**TEXT, num_labels=3))


def lora(model: Any, options: dict[str, Any]) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], **options))


@pytest.mark.parametrize("options", [{}, *SAVED])
def test_an_sngp_around_peft_trains_its_head_and_survives_a_merge(options: dict[str, Any]) -> None:
    method = SNGP(lora(bert(), options), num_inducing=16)
    before = method.gp.beta.detach().clone()
    fit(method, TOKENS, epochs=2, learning_rate=1e-2, progress=False)
    assert not torch.equal(before, method.gp.beta)
    probs = method.predict(TOKENS).probs
    merged = method.model.merge_and_unload()  # type: ignore[operator]
    method.fit_covariance(TOKENS)
    torch.testing.assert_close(method.predict(TOKENS).probs, probs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        answer = merged.eval()(TOKENS["input_ids"], attention_mask=TOKENS["attention_mask"]).logits
    torch.testing.assert_close(answer.softmax(-1), probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", SAVED)
def test_peft_around_an_sngp_trains_its_head_and_unloads_to_it(options: dict[str, Any]) -> None:
    method = SNGP(bert(), num_inducing=16)
    around = lora(method, options)
    before = method.gp.beta.detach().clone()
    around.train()
    around(**TOKENS).loss.backward()
    torch.optim.AdamW([p for p in around.parameters() if p.requires_grad], lr=1e-2).step()
    assert not torch.equal(before, method.gp.beta)
    around.fit_covariance(TOKENS)
    probs = around.predict(TOKENS).probs
    merged = around.merge_and_unload()
    assert isinstance(merged, SNGP)
    merged.fit_covariance(TOKENS)
    torch.testing.assert_close(merged.predict(TOKENS).probs, probs, rtol=1e-4, atol=1e-5)


def test_a_head_that_peft_has_frozen_is_named() -> None:
    around = lora(SNGP(bert(), num_inducing=16), {})
    with pytest.warns(FrozenHeadWarning, match="modules_to_save"):
        around.train()(**TOKENS)
