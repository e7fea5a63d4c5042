"""Hugging Face's Trainer with a method for a model: nothing to set; what is evaluated and saved is what is deployed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integrations.running import assert_equal_states, loaded, states, trained, trainer
from tests.integrations.tiny_bert import CLASSES, TEST, TRAIN, bert, sentences, sngp
from torch.utils.data import IterableDataset

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout, Prediction
from hesitant.evaluation import nll
from hesitant.integrations.transformers import FitCovariance

# Adam's steps are as long for gradients that are twice as large.
PLAIN_STEPS = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


# ---------------------------------------------------------------- labels, losses, logits


METHODS = {
    "SNGP": lambda: sngp(),
    "MCDropout": lambda: MCDropout(bert(), num_samples=4),
    "Deterministic": lambda: Deterministic(bert()),
    "DeepEnsemble": lambda: DeepEnsemble([bert(), bert(hidden_size=8)]),
}


@pytest.mark.filterwarnings("ignore:the covariance is not fitted")
@pytest.mark.parametrize("name", METHODS)
def test_labels_are_found_and_predictions_are_logits(name: str, tmp_path: Path) -> None:
    method = METHODS[name]().eval()
    asks = trainer(method, tmp_path)
    assert asks.label_names == ["labels"]
    found = asks.predict(TEST)
    assert found.predictions.shape == (18, CLASSES)
    assert torch.equal(torch.from_numpy(found.label_ids), torch.tensor([row["labels"] for row in TEST]))
    expected = nll(Prediction.from_logits(torch.from_numpy(found.predictions)), found.label_ids)
    assert asks.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)  # a mean of batches of 8, 8 and 2
    without = [{name: value for name, value in row.items() if name != "labels"} for row in TEST]
    assert trainer(method, tmp_path).predict(without).predictions.shape == (18, CLASSES)


def test_mc_dropout_and_the_plain_model_train_alike(tmp_path: Path) -> None:
    plain, within = bert(), bert()
    for model in (plain, MCDropout(within, num_samples=2)):
        trainer(model, tmp_path, save_strategy="no", eval_strategy="no").train()
    assert_equal_states(states(plain), states(within))


# ---------------------------------------------------------------- fitted in time


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_evaluations_and_checkpoints_are_of_the_deployed_distribution(strategy: str, tmp_path: Path) -> None:
    method = sngp()
    runs = trainer(method, tmp_path, FitCovariance(), eval_strategy=strategy, save_strategy=strategy, eval_steps=2,
                   save_steps=2, per_device_eval_batch_size=18)  # fmt: skip
    runs.train()
    logged = {entry["step"]: entry["eval_loss"] for entry in runs.state.log_history if "eval_loss" in entry}
    assert len(logged) == {"epoch": 2, "steps": 3}[strategy]
    for step, loss in logged.items():
        saved = loaded(tmp_path / f"checkpoint-{step}")
        assert saved.covariance_state == "fitted"
        assert float(saved.gp.laplace.num_seen) == len(TRAIN)
        assert nll(saved.predict(TEST)) == pytest.approx(loss, rel=1e-5)
        plain = Deterministic(saved.model).predict(TEST)  # whose classifier answers mean-field logits, too
        assert nll(plain) == pytest.approx(loss, rel=1e-5)
    assert method.covariance_state == "fitted"
    answered = torch.from_numpy(runs.predict(TEST).predictions).softmax(-1)
    torch.testing.assert_close(answered, method.predict(TEST).probs)


def test_the_best_model_comes_back_fitted_and_is_the_best_by_the_deployed_distribution(tmp_path: Path) -> None:
    method = sngp()
    options = {"load_best_model_at_end": True, "num_train_epochs": 3, "learning_rate": 5e-2}
    runs = trainer(method, tmp_path, FitCovariance(), per_device_eval_batch_size=18, **options)
    runs.train()
    losses = [entry["eval_loss"] for entry in runs.state.log_history if "eval_loss" in entry]
    assert runs.state.best_metric == min(losses)
    assert method.covariance_state == "fitted"
    best = loaded(Path(str(runs.state.best_model_checkpoint)))
    assert_equal_states(states(method), states(best))
    assert nll(method.predict(TEST)) == pytest.approx(min(losses), rel=1e-5)


def test_a_best_checkpoint_alone_is_fitted(tmp_path: Path) -> None:
    trained(tmp_path, save_strategy="best", metric_for_best_model="eval_loss", load_best_model_at_end=True)
    saved = list(tmp_path.glob("checkpoint-*"))
    assert saved
    assert all(loaded(folder).covariance_state == "fitted" for folder in saved)


def test_an_evaluation_ahead_of_training_is_of_a_fitted_model(tmp_path: Path) -> None:
    trained(tmp_path, eval_on_start=True, num_train_epochs=1)  # a warning would be an error


def test_training_is_what_it_is_without_the_callback(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="plain logits"):
        trainer(alone := sngp(), tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="no").train()
    method = trained(tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="no")
    assert alone.covariance_state == "none"
    # The power iteration goes on while a covariance is fitted; no layer is near its bound here.
    assert_equal_states(states(alone), states(method), but=("laplace", "fingerprint", "spectral"))


def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", num_train_epochs=3)
    again = sngp()
    resumed = trainer(again, tmp_path / "resumed", FitCovariance(), num_train_epochs=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert_equal_states(states(whole), states(again))


def test_a_trained_classifier_is_the_start(tmp_path: Path) -> None:
    net = bert()
    trainer(net, tmp_path, num_train_epochs=12, eval_strategy="no", save_strategy="no").train()
    before = Deterministic(net).predict(TEST)
    assert float((before.labels == before.targets).float().mean()) == 1
    method = trained(tmp_path, sngp(net), max_steps=1, learning_rate=1e-6, save_strategy="no", eval_strategy="no")
    assert torch.equal(method.predict(TEST).labels, before.labels)


def test_a_calibration_is_forgotten(tmp_path: Path) -> None:
    method = sngp(temperature=3.0)
    trained(tmp_path, method, max_steps=1, eval_strategy="no", save_strategy="no")
    assert method.temperature == 1


# ---------------------------------------------------------------- ways of training


def test_batches_that_are_accumulated_are_one_batch(tmp_path: Path) -> None:
    options = {**PLAIN_STEPS, "save_strategy": "no", "num_train_epochs": 1}
    one, parts = sngp(bert(**STILL), l2_penalty=0.1), sngp(bert(**STILL), l2_penalty=0.1)
    for model in (one, parts):
        model.gp.decide(torch.randn(20, 16, generator=torch.Generator().manual_seed(0)))
        model.gp.scale.follows = False  # it looks at each batch
    trained(tmp_path, one, **options)
    trained(tmp_path, parts, per_device_train_batch_size=8, gradient_accumulation_steps=2, **options)
    for name, weight in one.named_parameters():
        torch.testing.assert_close(parts.get_parameter(name), weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(parts.predict(TEST).probs, one.predict(TEST).probs, rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    kept = trained(tmp_path, save_strategy="no")
    checkpointed = sngp()
    assert not checkpointed.is_activation_checkpointing
    trained(tmp_path, checkpointed, save_strategy="no", activation_checkpointing=True)
    assert checkpointed.is_activation_checkpointing
    assert_equal_states(states(checkpointed), states(kept))


def test_bfloat16_trains_and_is_fitted(tmp_path: Path) -> None:
    method = sngp()
    runs = trainer(method, tmp_path, FitCovariance(), bf16=True, num_train_epochs=4, save_strategy="no")
    runs.train()
    assert method.covariance_state == "fitted"
    answered = torch.from_numpy(runs.predict(TEST).predictions).softmax(-1)
    torch.testing.assert_close(answered, method.predict(TEST).probs, rtol=0.05, atol=0.02)  # of 8 bits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which torch's compiler looks at
def test_a_compiled_model_trains_and_is_fitted(tmp_path: Path) -> None:
    method = sngp()
    options = {"torch_compile": True, "torch_compile_backend": "eager", "num_train_epochs": 1}
    runs = trainer(method, tmp_path, FitCovariance(), per_device_eval_batch_size=18, **options)
    runs.train()
    (logged,) = [entry["eval_loss"] for entry in runs.state.log_history if "eval_loss" in entry]
    assert nll(loaded(tmp_path / "checkpoint-3").predict(TEST)) == pytest.approx(logged, rel=1e-5)
    assert method.covariance_state == "fitted"


def test_a_running_covariance_is_left_to_itself(tmp_path: Path) -> None:
    method = trained(tmp_path, sngp(momentum=1.0))
    assert float(method.gp.laplace.num_seen) == len(TRAIN)  # of the last epoch alone
    assert loaded(tmp_path / "checkpoint-3", sngp(momentum=1.0)).covariance_state == "fitted"


def test_tied_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForSequenceClassification

    def bart() -> SNGP:
        torch.manual_seed(0)
        sizes = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        widths = {f"{part}_ffn_dim": 8 for part in ("encoder", "decoder")}
        config = BartConfig(vocab_size=40, d_model=8, max_position_embeddings=16, num_labels=CLASSES, eos_token_id=2,
                            pad_token_id=0, bos_token_id=1, decoder_start_token_id=2, **sizes, **widths)  # fmt: skip
        return sngp(BartForSequenceClassification(config))

    ended = [{**row, "input_ids": torch.cat([row["input_ids"][:-1], torch.tensor([2])])} for row in TRAIN]
    method = trained(tmp_path, bart(), train_dataset=ended, eval_dataset=ended, num_train_epochs=1)
    names = [n for n, t in method.named_parameters(remove_duplicate=False) if t is method.model.model.shared.weight]
    assert len(names) > 1
    assert len(set(names) & set(load_file(tmp_path / "checkpoint-3" / "model.safetensors"))) == 1
    again = loaded(tmp_path / "checkpoint-3", bart())
    assert torch.equal(again.predict(ended).probs, method.predict(ended).probs)


# ---------------------------------------------------------------- the penalty


def test_the_penalty_is_in_the_loss(tmp_path: Path) -> None:
    penalized, plain = sngp(bert(**STILL), l2_penalty=0.5), sngp(bert(**STILL))
    losses = []
    for method in (penalized, plain):
        runs = trainer(method, tmp_path, FitCovariance(), max_steps=1, logging_steps=1, eval_strategy="no")
        runs.train()
        losses.append(next(entry["loss"] for entry in runs.state.log_history if "loss" in entry))
    first = sngp(l2_penalty=0.5)
    first.train()(**runs.data_collator(TRAIN))  # decides, as training did, in which units beta is counted
    assert losses[0] - losses[1] == pytest.approx(float(first.regularization_loss().detach()), rel=1e-3)
    assert not torch.equal(penalized.gp.beta, plain.gp.beta)


def test_a_loss_without_the_penalty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0.1.*without the l2_penalty"):
        trained(tmp_path, sngp(l2_penalty=0.5), label_smoothing_factor=0.1)
    method = trained(tmp_path, label_smoothing_factor=0.1, num_train_epochs=1)
    assert method.covariance_state == "fitted"


# ---------------------------------------------------------------- what it is fitted to


def test_a_sample_stands_for_the_data_until_the_end(tmp_path: Path) -> None:
    method = trained(tmp_path, callback=FitCovariance(num_inputs=16))
    exact = method.gp.precision
    last = loaded(tmp_path / "checkpoint-6")
    assert float(last.gp.laplace.num_seen) == len(TRAIN)
    by_hand = loaded(tmp_path / "checkpoint-6")
    by_hand.fit_covariance(TRAIN, num_inputs=16)
    torch.testing.assert_close(last.gp.precision, by_hand.gp.precision)
    assert not torch.allclose(last.gp.precision, exact)
    by_hand.fit_covariance(TRAIN)
    torch.testing.assert_close(by_hand.gp.precision, exact)


def test_neighbours_are_kept_too(tmp_path: Path) -> None:
    method = sngp(ood_score="knn")
    trained(tmp_path, method, FitCovariance(num_inputs=16), load_best_model_at_end=True)
    assert method.neighbors is not None
    assert len(method.neighbors.inputs) == len(TRAIN)
    best = loaded(tmp_path / "checkpoint-6", sngp(ood_score="knn"))
    assert best.neighbors is not None
    assert len(best.neighbors.inputs) == 16


def test_every_input_counts_once_whatever_the_sampler(tmp_path: Path) -> None:
    of_lengths = [{**row, "length": 6 - row["labels"]} for row in sentences(21, 3)]
    method = trained(tmp_path, train_dataset=of_lengths, train_sampling_strategy="group_by_length", max_steps=1,
                     eval_strategy="no", dataloader_drop_last=True)  # fmt: skip
    assert float(method.gp.laplace.num_seen) == 21


def test_other_data_may_be_given(tmp_path: Path) -> None:
    method = trained(tmp_path, callback=FitCovariance(TRAIN[:20], batch_size=4), num_train_epochs=1)
    assert float(method.gp.laplace.num_seen) == 20


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(TRAIN)


def test_a_stream_wants_data_to_fit_to(tmp_path: Path) -> None:
    options = {"train_dataset": Stream(), "max_steps": 2, "save_strategy": "no", "eval_strategy": "no"}
    with pytest.raises(TypeError, match=r"a Stream.*FitCovariance\(data=\.\.\.\)"):
        trained(tmp_path, **options)
    method = trained(tmp_path, callback=FitCovariance(TRAIN), **options)
    assert method.covariance_state == "fitted"


def test_arguments_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_inputs=0 must be at least 1"):
        FitCovariance(num_inputs=0)
    with pytest.raises(ValueError, match=r"MCDropout holds no SNGP.*Leave the callback out"):
        trainer(MCDropout(bert()), tmp_path, FitCovariance()).train()
