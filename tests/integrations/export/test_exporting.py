"""Files: what they answer, what they say of themselves, and that none is written unless it is right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.export.exported import ask, inputs, network, session, sngp
from torch import Tensor, nn

import hesitant
from hesitant import DeferralPolicy
from hesitant.detection import FeatureDetector
from hesitant.integrations.export import exporting, onnx_file
from hesitant.nn import CovarianceError

X = inputs()


def test_an_sngp_as_onnx_says_what_it_is(tmp_path: Path) -> None:
    method = sngp(ood_score="knn")
    prediction = method.predict(X)
    policy = DeferralPolicy.calibrate(prediction, budget=0.3)
    path = hesitant.export(
        method,
        tmp_path / "model.onnx",
        X[:5],
        policy=policy,
        preprocessing={"mean": [0.5], "size": 32},
        label_names=["a", "b", "ç"],
    )
    for x in (X, X[:1]):
        answers, prediction = ask(path, x), method.predict(x)
        torch.testing.assert_close(answers["probs"], prediction.probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(answers["uncertainty"], prediction.ood_score, atol=1e-5, rtol=0)
        torch.testing.assert_close(answers["logit_variance"], prediction.logit_variance, atol=1e-6, rtol=1e-3)
        assert torch.equal(answers["accept"], policy.accept(prediction))
    told = session(path).get_modelmeta().custom_metadata_map
    (tmp_path / "policy.json").write_text(told["policy"])
    assert DeferralPolicy.load(tmp_path / "policy.json") == policy
    assert json.loads(told["preprocessing"]) == {"mean": [0.5], "size": 32}
    assert json.loads(told["label_names"]) == ["a", "b", "ç"]
    assert told["calibration"] == prediction.calibration
    assert (told["method"], told["hesitant_version"]) == ("SNGP", hesitant.__version__)
    assert [output.shape for output in session(path).get_outputs()] == [
        ["batch", 3],
        ["batch"],
        ["batch", 3],
        ["batch"],
    ]
    assert [each.name for each in tmp_path.iterdir() if each.suffix != ".json"] == ["model.onnx"]


def test_an_ensemble_of_all_kinds_as_onnx(tmp_path: Path) -> None:
    inner = hesitant.DeepEnsemble([network(1), sngp(2)])
    method = hesitant.DeepEnsemble([sngp(), network(3, width=24), inner], temperature=1.3)
    answers, prediction = ask(hesitant.export(method, tmp_path / "model.onnx", X), X), method.predict(X)
    torch.testing.assert_close(answers["probs"], prediction.probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(answers["uncertainty"], prediction.ood_score, atol=1e-5, rtol=0)


def test_a_program_of_torch(tmp_path: Path) -> None:
    method = sngp()
    policy = DeferralPolicy.calibrate(method.predict(X), budget=0.3)
    path = hesitant.export(method, tmp_path / "model.pt2", X[:1], policy=policy, preprocessing={"size": 4})
    told = {"hesitant.json": ""}
    answers = torch.export.load(path, extra_files=told).module()(X)
    prediction = method.predict(X)
    torch.testing.assert_close(answers["probs"], prediction.probs, atol=1e-5, rtol=0)
    torch.testing.assert_close(answers["logit_variance"], prediction.logit_variance, atol=1e-6, rtol=1e-3)
    assert torch.equal(answers["accept"], policy.accept(prediction))
    assert json.loads(json.loads(told["hesitant.json"])["preprocessing"]) == {"size": 4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sngp", "dropout"])
def test_what_aotinductor_compiles(kind: str, tmp_path: Path) -> None:
    method: Any = sngp() if kind == "sngp" else hesitant.MCDropout(network(), 200)
    path = hesitant.export(method, tmp_path / "model.pt2", X[:3], compiled=True)
    loaded = torch._inductor.aoti_load_package(str(path))
    assert loaded.get_metadata()["method"] == type(method).__name__
    prediction = method.predict(X)
    with torch.no_grad():
        probs = loaded(X)["probs"]
        assert torch.equal(probs, loaded(X)["probs"]) == (kind == "sngp")
    apart = (probs - prediction.probs).abs()
    allowed = torch.tensor(1e-5) if kind == "sngp" else 8 * prediction.class_std * (2 / 200) ** 0.5
    assert bool((apart <= allowed).all())


def test_weights_too_large_for_one_file_stand_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_LARGEST", 100)
    method = hesitant.Deterministic(network())
    path = hesitant.export(method, tmp_path / "model.onnx", X)
    torch.testing.assert_close(ask(path, X)["probs"], method.predict(X).probs, atol=1e-5, rtol=0)
    beside = [each for each in tmp_path.iterdir() if each != path]
    assert len(beside) == 1
    assert beside[0].name.startswith("model.onnx.")


# ---------------------------------------------------------------- what is refused


def stale() -> hesitant.SNGP:
    method = sngp()
    with torch.no_grad():
        method.gp.beta.mul_(2)
    return method


class Asking(nn.Module):
    """Its code asks what is in its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) if x.sum() > 0 else self.last(-x)


class Scaled(nn.Module):
    """Makes something else of its classifier's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 10 * self.last(x)


def scaled() -> hesitant.SNGP:
    method = hesitant.SNGP(Scaled(), num_inducing=32).eval()
    method.fit_covariance(X)
    return method


def other_policy() -> DeferralPolicy:
    return DeferralPolicy.calibrate(hesitant.Deterministic(network(), temperature=3.0).predict(X), budget=0.3)


REFUSED: dict[str, tuple[Any, str, dict[str, Any], type[Exception], str]] = {
    "stale": (stale, "m.onnx", {}, CovarianceError, "stale"),
    "unfitted": (lambda: hesitant.SNGP(network()), "m.pt2", {}, CovarianceError, "fit_covariance"),
    "suffix": (lambda: hesitant.Deterministic(network()), "m.pt", {}, ValueError, r"ends in '.pt': expected"),
    "folder": (
        lambda: hesitant.Deterministic(network()), "no/m.onnx", {}, FileNotFoundError, "no folder .*/no'. Make it",
    ),
    "plain network": (network, "m.onnx", {}, TypeError, r"model is a Sequential: .* hesitant.Deterministic\(network\)"),
    "compiled": (lambda: hesitant.Deterministic(network()), "m.onnx", {"compiled": True}, ValueError, "compiled=True"),
    "masks": (lambda: hesitant.Deterministic(network()), "m.onnx", {"masks": "x"}, ValueError, "masks='x'"),
    "no masks": (
        lambda: hesitant.Deterministic(network()), "m.onnx", {"masks": "input"}, ValueError, "has no dropout",
    ),
    "labels": (lambda: hesitant.Deterministic(network()), "m.onnx", {"label_names": ["a"]}, ValueError, "expected 3"),
    "preprocessing": (
        lambda: hesitant.Deterministic(network()), "m.onnx", {"preprocessing": {"a": X}}, TypeError, "as JSON",
    ),
    "sequence": (lambda: hesitant.Deterministic(network()), "m.onnx", {"sequence_axis": 2}, ValueError, "no input of"),
    "policy": (
        lambda: hesitant.Deterministic(network()), "m.onnx", {"policy": other_policy()}, ValueError, "another",
    ),
    "data-dependent code": (lambda: hesitant.Deterministic(Asking()), "m.pt2", {}, ValueError, "cannot capture"),
    "scaled logits": (scaled, "m.pt2", {}, ValueError, "answers the example with other"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:norm_bound bounds")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_a_file_is_written(name: str, tmp_path: Path) -> None:
    model, path, options, kind, message = REFUSED[name]
    (tmp_path / "m.onnx").write_text("before")
    with pytest.raises(kind, match=message):
        hesitant.export(model(), tmp_path / path, X, **options)
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "before"


def test_a_detector_is_refused_by_name() -> None:
    detector = FeatureDetector(hesitant.Deterministic(network()), "knn")
    with pytest.raises(TypeError, match=r"model is a FeatureDetector: .*knn"):
        hesitant.export(detector, "m.onnx", X)  # type: ignore[arg-type]


def test_a_bad_example_is_refused() -> None:
    with pytest.raises(TypeError, match="data is a list of str"):
        hesitant.export(hesitant.Deterministic(network()), "m.onnx", ["text"])


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_the_file_that_was_there_is_whole_after_an_error(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> None:
        arguments[1].write_text("half")
        raise error

    monkeypatch.setattr(exporting, "write_program", failing)
    (tmp_path / "m.pt2").write_text("before")
    with pytest.raises(type(error)):
        hesitant.export(hesitant.Deterministic(network()), tmp_path / "m.pt2", X)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("m.pt2", "before")]


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(onnx_file.OnnxAnswers):
        def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
            return {name: answer + 0.01 for name, answer in super().__call__(args, kwargs).items()}

    monkeypatch.setattr(exporting, "OnnxAnswers", Wrong)
    with pytest.raises(ValueError, match=r"answers the example with other probs than the method does, 0\.01 apart"):
        hesitant.export(hesitant.Deterministic(network()), tmp_path / "m.onnx", X)
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_convert_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_arguments: Any, **_options: Any) -> None:
        try:
            raise AttributeError("'tuple' object\nhas no attribute 'dtype'")
        except AttributeError as error:
            raise RuntimeError("Failed to convert.\nNext steps: ...") from error

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(ValueError, match=r"torch\.onnx of torch .* cannot convert .*'tuple' object has no .*\.pt2"):
        hesitant.export(hesitant.Deterministic(network()), tmp_path / "m.onnx", X)
    assert list(tmp_path.iterdir()) == []
