"""Hugging Face's Trainer, PEFT and SNGP, either around the other: the head trains, is saved, loaded and merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tests.integrations.running import loaded, trainer
from tests.integrations.tiny_bert import TEST, TRAIN, bert, sngp

from hesitant import SNGP
from hesitant.evaluation import accuracy, nll
from hesitant.integrations.transformers import FitCovariance

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]
OPTIONS: dict[str, Any] = {"num_train_epochs": 8, "learning_rate": 2e-2, "per_device_eval_batch_size": 18}
KINDS: list[dict[str, Any]] = [{"modules_to_save": ["classifier"]}, {"task_type": TaskType.SEQ_CLS}]


def lora(model: Any, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], **options))


def assert_merges(method: SNGP, merged: Any) -> None:
    """After a merge the weights are others, to rounding: the covariance says so, and is fitted once more."""
    expected = method.predict(TEST).probs
    merged = merged.merge_and_unload()
    rest = merged if isinstance(merged, SNGP) else method
    assert rest.covariance_state == "stale"
    rest.fit_covariance(TRAIN)
    torch.testing.assert_close(rest.predict(TEST).probs, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", KINDS)
def test_adapters_around_an_sngp(options: dict[str, Any], tmp_path: Path) -> None:
    method = sngp()
    around = lora(method, options)
    drawn = method.gp.beta.detach().clone()
    runs = trainer(around, tmp_path, FitCovariance(), load_best_model_at_end=True, **OPTIONS)
    assert runs.label_names == ["labels"]
    runs.train()
    assert not torch.equal(method.gp.beta, drawn)
    assert method.covariance_state == "fitted"
    assert accuracy(method.predict(TEST)) == 1
    assert nll(method.predict(TEST)) == pytest.approx(float(runs.state.best_metric or 0), rel=1e-4)
    assert runs.predict(TEST).predictions.shape == (18, 3)
    # The adapter's file holds the head and its covariance; whether that is the covariance of the base model's weights
    # no file of an adapter can say.
    again = PeftModel.from_pretrained(sngp(), str(runs.state.best_model_checkpoint))
    reloaded = again.get_base_model()
    assert isinstance(reloaded, SNGP)
    assert reloaded.covariance_state == "stale"
    reloaded.fit_covariance(TRAIN)
    torch.testing.assert_close(reloaded.predict(TEST).probs, method.predict(TEST).probs)
    assert_merges(method, around)


@pytest.mark.parametrize("options", [{}, *KINDS])
def test_adapters_within_an_sngp(options: dict[str, Any], tmp_path: Path) -> None:
    method = sngp(lora(bert(), options))
    drawn = method.gp.beta.detach().clone()
    runs = trainer(method, tmp_path, FitCovariance(), load_best_model_at_end=True, **OPTIONS)
    runs.train()
    assert not torch.equal(method.gp.beta, drawn)
    assert accuracy(method.predict(TEST)) == 1
    again = loaded(Path(str(runs.state.best_model_checkpoint)), sngp(lora(bert(), options)))
    assert again.covariance_state == "fitted"
    assert torch.equal(again.predict(TEST).probs, method.predict(TEST).probs)
    assert_merges(method, method.model)
