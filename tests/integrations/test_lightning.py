"""Lightning's Trainer: what is validated and saved is what is deployed, whatever moves the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from tests.integrations.running import assert_equal_states, states
from tests.integrations.tiny_lightning import FAR, QUIET, TEST, TRAIN, Classifier, X, Y, loader, network, runs, trained
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset, TensorDataset, WeightedRandomSampler

from hesitant import SNGP, MCDropout
from hesitant.evaluation import StreamingMetrics, auroc, ece, nll
from hesitant.integrations.lightning import FitCovariance

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]


def loaded(path: Any, **options: Any) -> SNGP:
    module = Classifier(network(**options))
    module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return module.eval().method


def best_and_last(**options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(monitor="nll", save_top_k=-1, save_last=True, filename="{epoch}", **options)


# ---------------------------------------------------------------- fitted in time


def test_validation_and_checkpoints_are_of_the_deployed_distribution(tmp_path: Path) -> None:
    module = Classifier()
    checkpoint = best_and_last()
    trained(tmp_path, module, checkpoint, max_epochs=3)
    assert len(module.validated) == 3
    for epoch, loss in enumerate(module.validated):
        saved = loaded(f"{checkpoint.dirpath}/epoch={epoch}.ckpt")
        assert saved.covariance_state == "fitted"
        assert float(saved.gp.laplace.num_seen) == len(TRAIN)
        assert nll(saved.predict(TEST)) == pytest.approx(loss, rel=1e-5)
    assert checkpoint.best_model_score == pytest.approx(min(module.validated))
    best = Classifier.load_from_checkpoint(checkpoint.best_model_path).method
    assert best.covariance_state == "fitted"
    assert nll(best.predict(TEST)) == pytest.approx(min(module.validated), rel=1e-5)
    last = loaded(checkpoint.last_model_path)
    assert module.method.covariance_state == "fitted"
    assert torch.equal(last.predict(TEST).probs, module.method.predict(TEST).probs)


@pytest.mark.parametrize("order", ["before", "behind"])
@pytest.mark.parametrize("options", [{}, {"save_weights_only": True}])
def test_checkpoints_between_validations_are_fitted(options: Any, order: str, tmp_path: Path) -> None:
    module, fit = Classifier(), FitCovariance()
    checkpoint = ModelCheckpoint(every_n_train_steps=3, save_top_k=-1, **options)
    given = [fit, checkpoint] if order == "before" else [checkpoint, fit]
    trained(tmp_path, module, *given, val_dataloaders=None)
    saved = list(tmp_path.rglob("*.ckpt"))
    assert len(saved) == 3
    assert all(loaded(path).covariance_state == "fitted" for path in saved)


def test_a_checkpoint_saved_by_hand_is_fitted(tmp_path: Path) -> None:
    class Saves(Classifier):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if self.global_step == 3:
                self.trainer.save_checkpoint(tmp_path / "by hand.ckpt")

    module = Saves()
    trainer = trained(tmp_path, module, max_epochs=1, enable_checkpointing=False)
    assert loaded(tmp_path / "by hand.ckpt").covariance_state == "fitted"
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert torch.equal(loaded(tmp_path / "after.ckpt").predict(X).probs, module.method.predict(X).probs)
    assert "save_checkpoint" not in vars(trainer)


def test_a_run_that_fails_leaves_the_trainer_as_it_was(tmp_path: Path) -> None:
    class Fails(Classifier):
        def on_train_epoch_end(self) -> None:
            raise RuntimeError("enough")

    module = Fails()
    trainer = runs(tmp_path, FitCovariance(), ModelCheckpoint(save_on_exception=True))
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(module, loader())
    assert "save_checkpoint" not in vars(trainer)
    (saved,) = tmp_path.rglob("*.ckpt")
    assert loaded(saved).covariance_state != "fitted"  # and says so


def test_validation_within_an_epoch_is_of_a_fitted_model(tmp_path: Path) -> None:
    module = Classifier()
    trained(tmp_path, module, max_epochs=1, val_check_interval=2, enable_checkpointing=False)
    assert len(module.validated) == 2  # a warning of plain logits would be an error


def test_training_is_what_it_is_without_the_callback(tmp_path: Path) -> None:
    module, alone = Classifier(), Classifier()
    trained(tmp_path, module, val_check_interval=2, enable_checkpointing=False)
    torch.manual_seed(0)
    trainer = runs(tmp_path, val_check_interval=2, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="plain logits"):
        trainer.fit(alone, loader(), loader(TEST, shuffle=False))
    assert alone.method.covariance_state == "none"
    assert_equal_states(states(alone), states(module), but=("laplace", "fingerprint", "spectral"))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_resumed_run_ends_as_an_unbroken_one(averaged: bool, tmp_path: Path) -> None:
    def ends(**options: Any) -> Classifier:
        module = Classifier(network(drop=0.0))
        averaging = [EMAWeightAveraging(decay=0.9)] if averaged else []
        in_order = {"train_dataloaders": loader(shuffle=False)}  # Lightning keeps no state of a loader
        trained(tmp_path, module, *averaging, best_and_last(dirpath=tmp_path), max_epochs=3, **in_order, **options)
        return module

    whole = ends()
    again = ends(ckpt_path=tmp_path / "epoch=1.ckpt")
    assert again.validated == whole.validated[2:]
    assert_equal_states(states(whole), states(again))


def test_a_trained_classifier_is_the_start_and_a_calibration_is_forgotten(tmp_path: Path) -> None:
    net = network(norm=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()
    before = net.eval()(X).argmax(1)
    module = Classifier(net.train(), temperature=2.0)
    trained(tmp_path, module, max_steps=1, enable_checkpointing=False)
    assert float((module.method.predict(X).labels == before).float().mean()) > 0.9
    assert module.method.temperature == 1


# ---------------------------------------------------------------- averaged weights


def test_an_average_of_weights_is_fitted_for_validation_checkpoints_and_the_end(tmp_path: Path) -> None:
    module, checkpoint = Classifier(), best_and_last()
    trained(tmp_path, module, EMAWeightAveraging(decay=0.9), checkpoint, max_epochs=3)
    for epoch, loss in enumerate(module.validated):
        saved = loaded(f"{checkpoint.dirpath}/epoch={epoch}.ckpt")
        assert saved.covariance_state == "fitted"
        assert nll(saved.predict(TEST)) == pytest.approx(loss, rel=1e-4)
    assert module.method.covariance_state == "fitted"
    assert nll(module.method.predict(TEST)) == pytest.approx(module.validated[-1], rel=1e-4)
    told = module.method.gp.precision
    module.method.fit_covariance(TRAIN)
    torch.testing.assert_close(told, module.method.gp.precision)


@pytest.mark.parametrize("buffers", [True, False])
def test_an_average_keeps_its_own_neighbours(buffers: bool, tmp_path: Path) -> None:
    module, averaging = Classifier(ood_score="knn"), EMAWeightAveraging(decay=0.9, use_buffers=buffers)
    trained(tmp_path, module, FitCovariance(num_inputs=20), averaging, best_and_last())
    assert len(module.method.neighbors.inputs) == len(TRAIN)
    told = module.method.predict(TEST).ood_score
    module.method.fit_covariance(TRAIN)
    assert torch.equal(module.method.predict(TEST).ood_score, told)
    saved = Classifier(ood_score="knn")
    saved.load_state_dict(torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert saved.method.covariance_state == "fitted"
    assert len(saved.method.neighbors.inputs) == 20


@pytest.mark.parametrize("norm", [True, False])
def test_stochastic_weight_averaging_ends_fitted(norm: bool, tmp_path: Path) -> None:
    module, checkpoint = Classifier(network(norm=norm)), ModelCheckpoint(save_last=True)
    averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2)
    trained(tmp_path, module, averaging, checkpoint, max_epochs=4)
    assert averaging.n_averaged is not None
    assert int(averaging.n_averaged) > 1
    assert averaging._average_model is not None
    for weight, average in zip(module.parameters(), averaging._average_model.parameters(), strict=True):
        assert torch.equal(weight, average)
    assert module.method.covariance_state == "fitted"
    told = module.method.gp.precision
    module.method.fit_covariance(TRAIN)
    torch.testing.assert_close(told, module.method.gp.precision)
    assert loaded(checkpoint.last_model_path, norm=norm).covariance_state == "fitted"


# ---------------------------------------------------------------- ways of training


def test_batches_that_are_accumulated_are_one_batch(tmp_path: Path) -> None:
    class Plainly(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    modules = []
    for size, batches in ((10, 1), (5, 2)):
        module = Plainly(network(drop=0.0, norm=False), l2_penalty=0.1)
        module.method.gp.decide(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)))
        module.method.gp.scale.follows = False  # it looks at each batch
        given = {"train_dataloaders": loader(batch_size=size), "accumulate_grad_batches": batches}
        trained(tmp_path, module, enable_checkpointing=False, **given)
        modules.append(module)
    for name, weight in modules[0].named_parameters():
        torch.testing.assert_close(modules[1].get_parameter(name), weight, rtol=1e-3, atol=1e-5)


def test_bfloat16_trains_and_is_fitted(tmp_path: Path) -> None:
    module, checkpoint = Classifier(), best_and_last()
    trained(tmp_path, module, checkpoint, precision="bf16-mixed")
    saved = loaded(checkpoint.last_model_path)
    assert saved.covariance_state == "fitted"
    assert nll(saved.predict(TEST)) == pytest.approx(module.validated[-1], rel=0.02)  # of 8 bits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which torch's compiler looks at
@pytest.mark.parametrize("part", ["method", "module"])
def test_what_is_compiled_trains_and_is_fitted(part: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    module, checkpoint = Classifier(), ModelCheckpoint(save_last=True)
    method = module.method
    if part == "method":
        module.method = torch.compile(method, backend="eager")
    compiled: Any = module if part == "method" else torch.compile(module, backend="eager")
    trained(tmp_path, compiled, checkpoint, max_epochs=1)
    assert method.covariance_state == "fitted"
    assert nll(method.predict(TEST)) == pytest.approx(module.validated[-1], rel=1e-5)
    saved = torch.load(checkpoint.last_model_path, weights_only=True)["state_dict"]
    saved = {name.replace("_orig_mod.", ""): tensor for name, tensor in saved.items()}
    again = Classifier()
    again.load_state_dict(saved)
    assert torch.equal(again.method.predict(TEST).probs, method.predict(TEST).probs)


def test_a_running_covariance_is_left_to_itself(tmp_path: Path) -> None:
    module = Classifier(momentum=1.0)
    trained(tmp_path, module, enable_checkpointing=False)
    assert float(module.method.gp.laplace.num_seen) == len(TRAIN)  # of the last epoch alone


# ---------------------------------------------------------------- the penalty


class Loss(nn.Module):
    """A model that answers its own loss, as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(drop=0.0, norm=False)

    def forward(self, x: Any, labels: Any = None) -> dict[str, Any]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"logits": logits, "loss": F.cross_entropy(logits, labels)}


class OwnLoss(Classifier):
    def training_step(self, batch: Any, index: int) -> Any:
        return self.method(batch[0], labels=batch[1])["loss"]

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("nll", self.method(batch[0], labels=batch[1])["loss"])


def test_the_penalty_is_in_the_gradient_once(tmp_path: Path) -> None:
    modules = {
        "left out": Classifier(network(drop=0.0, norm=False), l2_penalty=0.5),
        "added": Classifier(network(drop=0.0, norm=False), l2_penalty=0.5, adds_penalty=True),
        "the model's own": OwnLoss(Loss(), l2_penalty=0.5, classifier="net.4"),
    }
    for module in modules.values():
        trained(tmp_path, module, enable_checkpointing=False, gradient_clip_val=1.0)
    for name in ("added", "the model's own"):
        for one, other in zip(modules["left out"].parameters(), modules[name].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    without = Classifier(network(drop=0.0, norm=False))
    trained(tmp_path, without, enable_checkpointing=False, gradient_clip_val=1.0)
    weights = without.method.gp.output_weights.norm(), modules["added"].method.gp.output_weights.norm()
    assert float(weights[0].detach()) > 1.1 * float(weights[1].detach())


# ---------------------------------------------------------------- what it is fitted to


def test_a_sample_stands_for_the_data_until_the_end(tmp_path: Path) -> None:
    module, checkpoint = Classifier(), ModelCheckpoint(monitor="nll", save_top_k=-1, filename="{epoch}")
    trained(tmp_path, module, FitCovariance(num_inputs=20, seed=3), checkpoint)
    saved = loaded(f"{checkpoint.dirpath}/epoch=1.ckpt")
    assert float(saved.gp.laplace.num_seen) == len(TRAIN)
    told = saved.gp.precision
    assert not torch.allclose(told, module.method.gp.precision)
    saved.fit_covariance(TRAIN, num_inputs=20, seed=3)
    torch.testing.assert_close(saved.gp.precision, told)
    saved.fit_covariance(TRAIN)
    torch.testing.assert_close(saved.gp.precision, module.method.gp.precision)


def test_every_input_counts_once_whatever_the_sampler(tmp_path: Path) -> None:
    module = Classifier()
    sampler = WeightedRandomSampler(torch.rand(50, generator=torch.Generator().manual_seed(0)), 30)
    given = {"train_dataloaders": loader(shuffle=False, sampler=sampler, drop_last=True), "val_dataloaders": None}
    trained(tmp_path, module, enable_checkpointing=False, max_epochs=1, **given)
    assert float(module.method.gp.laplace.num_seen) == 50


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([TRAIN[row] for row in range(20)])


def test_streams_and_several_loaders_want_data_to_fit_to(tmp_path: Path) -> None:
    class Several(Classifier):
        def training_step(self, batch: Any, index: int) -> Any:
            return super().training_step(batch[0], index)

    for module, given, kind in ((Classifier(), loader(Stream(), shuffle=False), "Stream"),
                                (Several(), [loader(), loader()], "list")):  # fmt: skip
        options = {"train_dataloaders": given, "max_epochs": 1, "enable_checkpointing": False, "val_dataloaders": None}
        with pytest.raises(TypeError, match=rf"a {kind}.*FitCovariance\(data=\.\.\.\)"):
            trained(tmp_path, module, **options)
        trained(tmp_path, module, FitCovariance(TensorDataset(X[:30], Y[:30]), batch_size=7), **options)
        assert float(module.method.gp.laplace.num_seen) == 30


def test_arguments_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_inputs=0 must be at least 1"):
        FitCovariance(num_inputs=0)
    module = Classifier()
    module.method = MCDropout(network())
    with pytest.raises(ValueError, match=r"Classifier holds no SNGP.*Leave the callback out"):
        trained(tmp_path, module)


# ---------------------------------------------------------------- metrics


def test_metrics_of_the_deployed_distribution_are_logged_batch_by_batch(tmp_path: Path) -> None:
    class Measured(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.metrics = StreamingMetrics()

        def validation_step(self, batch: Any, index: int) -> None:
            if not self.trainer.sanity_checking:
                inputs, targets = batch
                self.metrics.update(self.method.predict((inputs, targets)))
                self.metrics.update_ood("far", self.method.predict(FAR))

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.log_dict(self.metrics.of_all_workers().compute())
                self.metrics.reset()

    module, checkpoint = Measured(), ModelCheckpoint(monitor="nll")
    given = {"val_dataloaders": loader(TEST, shuffle=False, batch_size=20)}
    trainer = trained(tmp_path, module, checkpoint, **given)
    method = module.method
    prediction = method.predict(TEST)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["nll"] == pytest.approx(nll(prediction), rel=1e-6)  # which Lightning keeps in float32
    assert logged["ece"] == pytest.approx(ece(prediction), rel=1e-6)
    assert logged["auroc_far"] == pytest.approx(auroc(prediction.ood_score, method.predict(FAR).ood_score))
    assert checkpoint.best_model_score is not None
