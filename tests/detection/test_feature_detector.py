"""Detectors beside the methods: the very probabilities of the method, and a score on the features of the same pass."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hesitant
from hesitant import SNGP, DeepEnsemble, DeferralPolicy, Deterministic, MCDropout
from hesitant.detection import DETECTORS, DetectorError, FeatureDetector
from hesitant.evaluation import auroc
from hesitant.methods import FeatureSource
from hesitant.nn import RandomFeatureGaussianProcess
from hesitant.prediction import UnavailableError

OWN = ("knn", "mahalanobis", "relative_mahalanobis")
OF_LOGITS = ("energy", "gen", "max_logit", "max_softmax")
WIDTH, CLASSES = 16, 3


def rows(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(seed))


X, Y = rows(120), torch.arange(120) % CLASSES
X = X + 3 * nn.functional.one_hot(Y, 4)
FAR = 4 * rows(40, seed=7)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, CLASSES))


def sngp() -> SNGP:
    model = SNGP(network(), num_inducing=32, generator=torch.Generator().manual_seed(0))
    model.fit_covariance(X)
    return model


METHODS: dict[str, Any] = {
    "Deterministic": lambda: Deterministic(network()),
    "SNGP": sngp,
    "MCDropout": lambda: MCDropout(network(), num_samples=3),
    "DeepEnsemble": lambda: DeepEnsemble([network(seed) for seed in range(2)]),
}


def features_by_hand(method: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = method.model[:2](x)
        return answer


def theirs(name: str, method: Any, x: Tensor) -> Tensor:
    """Answers what pytorch-ood itself answers on features or logits that were taken by hand."""
    library = pytest.importorskip("pytorch_ood.detector")
    linear, known, own = method.model[-1], features_by_hand(method, X), features_by_hand(method, x)
    if name in OF_LOGITS:
        kind = {"energy": "EnergyBased", "gen": "GEN", "max_logit": "MaxLogit", "max_softmax": "MaxSoftmax"}[name]
        return getattr(library, kind)(None).predict_logits(method.predict(x, batch_size=7).logits).double()
    if name == "scale":
        detector = library.SCALE(None, head=lambda maps: linear(maps.flatten(1)))
        return detector.predict_feature_maps(own[:, :, None, None]).double()
    if name == "ddu":  # some features are 0 for all of a class
        for jitter in (10.0**power for power in range(-30, 1)):
            try:
                detector = library.GMM(None, reg=jitter).fit_features(known, Y)
            except ValueError:
                continue
            return detector.predict_features(own)
    made = {
        "knn": lambda: library.KNN(None, k=1),
        "mahalanobis": lambda: library.Mahalanobis(None),
        "relative_mahalanobis": lambda: library.RMD(None),
        "vim": lambda: library.ViM(None, d=WIDTH // 2, w=linear.weight, b=linear.bias),
    }[name]()
    return made.fit_features(known, Y).predict_features(own).double()


@pytest.mark.parametrize("method", ["Deterministic", "SNGP", "MCDropout"])
@pytest.mark.parametrize("name", DETECTORS)
def test_the_score_is_the_librarys_on_features_taken_by_hand(name: Any, method: str) -> None:
    if method == "SNGP" and name in ("vim", "scale"):
        pytest.skip("needs a Linear classifier")
    of = METHODS[method]()
    expected = theirs(name, of, FAR)
    prediction = FeatureDetector(of, name).fit((X, Y), batch_size=50).predict(FAR, batch_size=7)
    near = {"relative_mahalanobis": 1e-3, "mahalanobis": 1e-4, "ddu": 1e-6}.get(name, 1e-5)
    scale = float(expected.abs().max())
    torch.testing.assert_close(prediction.ood_score, expected, rtol=near, atol=near * scale)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*OWN, "energy"])
def test_everything_else_is_the_methods_own(name: Any, method: str) -> None:
    of = METHODS[method]()
    if name == "energy":
        pytest.importorskip("pytorch_ood")
    elif method == "DeepEnsemble":
        with pytest.raises(TypeError, match=r"ensemble\.members\[0\]"):
            FeatureDetector(of, name)
        return
    own, detected = (
        of.predict((X, Y), batch_size=50),
        FeatureDetector(of, name).fit((X, Y)).predict((X, Y), batch_size=50),
    )
    for field in own.available:
        if field != "ood_score":
            assert torch.equal(getattr(own, field), getattr(detected, field)), field
    assert torch.equal(detected.targets, Y)
    assert not torch.equal(own.ood_score, detected.ood_score)


@pytest.mark.parametrize("name", OWN)
def test_higher_is_further(name: Any) -> None:
    detector = FeatureDetector(Deterministic(network()), name).fit((X, Y))
    far = X @ torch.linalg.qr(rows(4, seed=3)).Q * 3  # turned away
    assert auroc(detector.predict(X).ood_score, detector.predict(far).ood_score) > 0.7


@pytest.mark.parametrize("name", DETECTORS)
def test_it_answers_for_any_form_of_data_and_any_batches(name: Any) -> None:
    if name not in OWN:
        pytest.importorskip("pytorch_ood")
    dataset = TensorDataset(X, Y)
    whole = FeatureDetector(network(), name).fit((X, Y)).predict(X).ood_score
    shuffled = DataLoader(dataset, batch_size=13, shuffle=True, generator=torch.Generator().manual_seed(1))
    for data in (dataset, shuffled, ((X[i : i + 9], Y[i : i + 9]) for i in range(0, 120, 9))):
        detector = FeatureDetector(network(), name).fit(data)
        torch.testing.assert_close(detector.predict(X, batch_size=11).ood_score, whole, rtol=2e-5, atol=2e-5)


def test_the_features_come_from_the_pass_that_answers() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            COUNT.append(len(x))
            answer: Tensor = self.net(x)
            return answer

    COUNT: list[int] = []
    near = SNGP(Counting(), num_inducing=16, classifier="net.3")
    near.fit_covariance(X)
    for detector in (FeatureDetector(Counting(), "knn", classifier="net.3"), FeatureDetector(near, "knn")):
        detector.fit(X)
        COUNT.clear()
        detector.predict(X, batch_size=30)
        assert COUNT == [30] * 4


def test_nothing_is_written_onto_the_model() -> None:
    model = network().train()
    before = {name: copy.copy(module.__dict__) for name, module in model.named_modules()}
    FeatureDetector(model, "knn").fit(X).predict(X)
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
        assert len(module._forward_pre_hooks) == 0
        assert module.training


def test_training_mode_answers_as_eval_mode_does() -> None:
    model = network().eval()
    detector = FeatureDetector(model, "knn").fit(X)
    before = detector.predict(FAR)
    model.train()
    after = detector.predict(FAR)
    assert torch.equal(before.ood_score, after.ood_score)
    assert torch.equal(before.probs, after.probs)


def test_the_models_own_hooks_run_once() -> None:
    model, seen = network(), []
    model[-1].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    detector = FeatureDetector(model, "knn").fit(X)
    seen.clear()
    detector.predict(X)
    assert seen == [len(X)]


def test_two_threads_get_what_each_would_get_alone() -> None:
    for method in (Deterministic(network()), sngp()):
        detector = FeatureDetector(method, "knn").fit((X, Y))
        inputs = [rows(300, seed=seed) for seed in range(8)]
        alone = [detector.predict(x, batch_size=40).ood_score for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda x, d=detector: d.predict(x, batch_size=40).ood_score, inputs))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# ---------------------------------------------------------------- fitted, stale


@pytest.mark.parametrize("method", ["Deterministic", "SNGP", "MCDropout"])
def test_it_is_fitted_before_it_predicts_and_again_when_the_weights_have_moved(method: str) -> None:
    of = METHODS[method]()
    detector = FeatureDetector(of, "knn")
    with pytest.raises(DetectorError, match=r"not fitted. Call fit\(training_data\)"):
        detector.predict(X)
    detector.fit(X).predict(X)
    other = copy.deepcopy(of.model.state_dict())
    of.model.load_state_dict(other)
    detector.predict(X)  # the same bits
    with torch.no_grad():
        of.model[0].weight[0, 0] += 1
    if method == "SNGP":
        of.fit_covariance(X)
    for _ in range(2):
        with pytest.raises(DetectorError, match="weights have moved"):
            detector.predict(X)
    assert float(detector.fit(X).predict(X).ood_score.max()) < 1e-6


def test_a_head_that_moves_alone_leaves_an_sngps_features() -> None:
    model = sngp()
    detector = FeatureDetector(model, "knn").fit(X)
    with torch.no_grad():
        model.gp.beta.mul_(2)
    model.fit_covariance(X)
    detector.predict(X)


def test_a_pass_that_fails_leaves_the_fit_that_was_there() -> None:
    detector = FeatureDetector(network(), "mahalanobis").fit((X, Y))
    before = detector.predict(FAR).ood_score
    with pytest.raises(ValueError, match="no targets"):
        detector.fit(X)
    assert torch.equal(detector.predict(FAR).ood_score, before)


def test_what_has_nothing_to_fit_predicts_at_once() -> None:
    pytest.importorskip("pytorch_ood")
    for name in (*OF_LOGITS, "scale"):
        detector = FeatureDetector(network(), name)
        assert torch.equal(detector.predict(X).ood_score, detector.fit(X).predict(X).ood_score)


def test_a_copy_and_a_pickled_one_answer_the_same() -> None:
    detector = FeatureDetector(network(), "mahalanobis").fit((X, Y))
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert torch.equal(other.predict(FAR).ood_score, detector.predict(FAR).ood_score)


# ---------------------------------------------------------------- among the methods


def test_compare_shows_them_beside_the_methods() -> None:
    model = sngp()
    detector = FeatureDetector(model, "knn").fit(X)
    comparison = hesitant.compare({"SNGP": model, "SNGP + kNN": detector}, (X, Y), ood={"far": FAR})
    plain, near = comparison.figures["SNGP"], comparison.figures["SNGP + kNN"]
    assert plain["nll"] == near["nll"]
    assert plain["parameters"] == near["parameters"]
    assert near["auroc.far"] == pytest.approx(auroc(detector.predict(X).ood_score, detector.predict(FAR).ood_score))
    assert "SNGP + kNN" in str(comparison)


def test_calibrating_moves_probabilities_and_never_the_score() -> None:
    of, other = Deterministic(network()), Deterministic(network())
    before, after = FeatureDetector(of, "knn").fit(X), FeatureDetector(other, "knn").fit(X)
    score = before.predict(FAR).ood_score
    mixed = Y.roll(1).where(torch.arange(120) % 5 == 0, Y)
    assert hesitant.calibrate(before, (X, mixed)).temperature == hesitant.calibrate(other, (X, mixed)).temperature != 1
    assert of.temperature == other.temperature
    for detector in (before, after):
        assert torch.equal(detector.predict(FAR).ood_score, score)
        assert torch.equal(detector.predict(FAR).probs, of.predict(FAR).probs)


def test_a_temperature_does_not_move_the_scores_of_logits() -> None:
    pytest.importorskip("pytorch_ood")
    for method in (Deterministic(network()), sngp(), MCDropout(network(), 3)):
        for name in OF_LOGITS:
            detector = FeatureDetector(method, name)
            before = detector.predict(FAR).ood_score
            method.temperature = 2.5
            assert torch.equal(detector.predict(FAR).ood_score, before)
            method.temperature = 1.0


def test_a_policy_guards_by_it_and_refuses_another_detectors_prediction(tmp_path: Path) -> None:
    def detector(k: int, **options: Any) -> FeatureDetector:
        return FeatureDetector(Deterministic(network()), "knn", k=k, **options).fit(X)

    first = detector(1)
    policy = DeferralPolicy.calibrate(
        first.predict((rows(200, 5), torch.arange(200) % CLASSES)), budget=0.3, guard=0.1, guard_score="ood_score"
    )
    policy.save(tmp_path / "policy.json")
    loaded = DeferralPolicy.load(tmp_path / "policy.json")
    assert torch.equal(loaded.accept(first.predict(FAR)), policy.accept(first.predict(FAR)))
    loaded.accept(detector(1, max_inputs=50_000).predict(FAR))  # the default, said
    others = [
        detector(2).predict(FAR),
        FeatureDetector(Deterministic(network()), "mahalanobis").fit((X, Y)).predict(FAR),
        first.method.predict(FAR),
    ]
    for other in others:
        with pytest.raises(ValueError, match="another method"):
            loaded.accept(other)


def test_the_methods_own_options_are_its_own() -> None:
    detector = FeatureDetector(sngp(), "knn").fit(X)
    drawn = detector.predict(FAR, posterior="monte_carlo", num_samples=5, seed=3)
    assert "mutual_information" in drawn.available
    assert torch.equal(drawn.ood_score, detector.predict(FAR).ood_score)
    with pytest.raises(TypeError, match=r"no option \['posteriors'\]"):
        detector.predict(FAR, posteriors="monte_carlo")


# ---------------------------------------------------------------- models of all kinds


def test_it_takes_what_the_model_takes() -> None:
    class OfADict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.classifier = network()[:2], nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor, shift: Tensor) -> dict[str, Tensor]:
            return {"logits": self.classifier(input=self.net(x + shift))}

    model = OfADict()
    data = {"x": X, "shift": torch.zeros(120, 1), "labels": Y}
    prediction = FeatureDetector(model, "mahalanobis").fit(data).predict(data)
    assert torch.equal(prediction.targets, Y)


def test_what_a_model_writes_to_its_features_afterwards_does_not_count() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            features = self.net[:3](x)
            logits: Tensor = self.net[3](features)
            features.zero_()
            return logits

    detector = FeatureDetector(Overwriting(), "knn", classifier="net.3").fit(X)
    assert torch.equal(detector.predict(FAR).ood_score, FeatureDetector(network(), "knn").fit(X).predict(FAR).ood_score)


def test_a_model_that_ends_in_a_softmax_has_features_and_no_logits() -> None:
    model = nn.Sequential(*network(), nn.Softmax(-1))
    with pytest.raises(ValueError, match="outputs='probabilities'"):
        FeatureDetector(model, "knn").fit(X).predict(X)
    said = Deterministic(model, outputs="probabilities")
    assert float(FeatureDetector(said, "knn").fit(X).predict(X).ood_score.max()) < 1e-6
    pytest.importorskip("pytorch_ood")
    with pytest.raises(UnavailableError, match="'knn'"):
        FeatureDetector(said, "energy").predict(X)


@pytest.mark.parametrize("name", ["energy", "max_logit"])
def test_neither_class_of_a_single_logit_is_less_known(name: Any) -> None:
    pytest.importorskip("pytorch_ood")
    model = nn.Linear(1, 1, bias=False)
    x = torch.tensor([[2.0], [-2.0]])
    scores = FeatureDetector(model, name).predict(x).ood_score
    assert float(scores[0]) == pytest.approx(float(scores[1]))


def test_half_precision() -> None:
    detector = FeatureDetector(network().bfloat16(), "knn").fit(X.bfloat16())
    assert float(detector.predict(X.bfloat16()).ood_score.max()) < 1e-6


def test_compiled_code_is_asked_as_it_was_written() -> None:
    compiled = torch.compile(network(), backend="eager")
    detector = FeatureDetector(Deterministic(compiled), "knn").fit(X)
    expected = FeatureDetector(network(), "knn").fit(X).predict(FAR).ood_score
    torch.testing.assert_close(detector.predict(FAR).ood_score, expected)


@pytest.mark.parametrize("name", OWN)
def test_one_row_is_enough(name: Any) -> None:
    detector = FeatureDetector(network(), name).fit((X[:1], Y[:1]))
    assert detector.predict(X[:1]).ood_score.shape == (1,)


def test_a_class_may_be_missing() -> None:
    known = Y != 1
    for name in ("mahalanobis", "relative_mahalanobis"):
        FeatureDetector(network(), name).fit((X[known], Y[known])).predict(X)
    pytest.importorskip("pytorch_ood")
    FeatureDetector(network(), "ddu").fit((X[known], Y[known])).predict(X)


def test_no_more_inputs_are_kept_than_asked_for() -> None:
    detector = FeatureDetector(network(), "knn", max_inputs=20).fit(X, batch_size=7)
    assert int((detector.predict(X).ood_score < 1e-6).sum()) == 20
    again = FeatureDetector(network(), "knn", max_inputs=20)
    assert torch.equal(again.fit(X, batch_size=30).predict(FAR).ood_score, detector.predict(FAR).ood_score)
    assert not torch.equal(again.fit(X, seed=1).predict(FAR).ood_score, detector.predict(FAR).ood_score)


# ---------------------------------------------------------------- what it cannot do is said


class OfPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)  # (B, T, C)
        return logits.mean(1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.classifier(x) + self.classifier(-x)
        return answer


def test_features_that_are_not_one_row_for_each_input() -> None:
    with pytest.raises(ValueError, match=r"features of shape \(20, 6, 4\) for 20 inputs: expected \(B, D\)"):
        FeatureDetector(OfPositions(), "knn").fit(X.view(20, 6, 4))
    with pytest.raises(ValueError, match="called its classifier 2 times"):
        FeatureDetector(Twice(), "knn").fit(X)


def test_features_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match=r"features of inputs 50 to 99 hold NaN"):
        FeatureDetector(network(), "knn").fit(X.clone().index_fill_(0, torch.tensor(60), torch.nan), batch_size=50)
    detector = FeatureDetector(network(), "knn").fit(X)
    with pytest.raises(ValueError, match="finite"):
        detector.predict(torch.full((2, 4), torch.inf))


def test_targets_that_are_no_classes() -> None:
    with pytest.raises(ValueError, match="targets hold -1"):
        FeatureDetector(network(), "mahalanobis").fit((X, Y - 1))


def test_options_of_gen_and_scale() -> None:
    pytest.importorskip("pytorch_ood")
    for options, said in (({"gamma": 0}, "gamma=0"), ({"M": 0}, "M=0"), ({"gamma": "a"}, "gamma='a'")):
        with pytest.raises(ValueError, match=said):
            FeatureDetector(network(), "gen", **options)
    with pytest.raises(ValueError, match=r"percentile=0\.99 leaves none of 16 features"):
        FeatureDetector(network(), "scale", percentile=0.99)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="detector='nearest' is not known"):
        FeatureDetector(network(), "nearest")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'knn' has no option \['neighbours'\]: it takes \['k', 'max_inputs'\]"):
        FeatureDetector(network(), "knn", neighbours=3)
    with pytest.raises(TypeError, match="it takes none"):
        FeatureDetector(network(), "mahalanobis", k=3)
    with pytest.raises(ValueError, match="k=0"):
        FeatureDetector(network(), "knn", k=0)
    with pytest.raises(ValueError, match="k=200 is more than the 120 inputs"):
        FeatureDetector(network(), "knn", k=200).fit(X)
    with pytest.raises(ValueError, match="no Linear"):
        FeatureDetector(nn.Conv1d(1, 1, 1), "knn")
    with pytest.raises(ValueError, match="classifier='2' is not a Linear"):
        FeatureDetector(network(), "knn", classifier="2")
    with pytest.raises(ValueError, match="give the SNGP itself"):
        FeatureDetector(Deterministic(sngp()), "knn")
    with pytest.raises(ValueError, match="give the SNGP itself"):
        FeatureDetector(nn.Sequential(RandomFeatureGaussianProcess(4, 3)), "knn")
    with pytest.raises(ValueError, match="knows its classifier"):
        FeatureDetector(sngp(), "knn", classifier="3")
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        FeatureDetector("resnet", "energy")  # type: ignore[arg-type]
    pytest.importorskip("pytorch_ood")
    for name in ("vim", "scale"):
        with pytest.raises(ValueError, match="Linear classifier, and an SNGP"):
            FeatureDetector(sngp(), name)  # type: ignore[arg-type]


def test_weights_that_move_between_two_looks_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    source = FeatureSource(Deterministic(network()))
    marks = iter([1, 2])
    monkeypatch.setattr(source, "mark", lambda: next(marks))
    assert source.has_moved(1)
    monkeypatch.undo()
    assert source._watch.raised  # it is looked at again


def test_repr() -> None:
    detector = FeatureDetector(network(), "knn", k=2)
    assert repr(detector) == "FeatureDetector(Deterministic, 'knn', k=2, max_inputs=50000; not fitted)"
    assert repr(detector.fit(X)).endswith("; fitted to 120 inputs)")


def test_the_package_is_imported_only_when_it_is_used() -> None:
    code = (
        "import sys, torch, hesitant\n"
        "from hesitant.detection import FeatureDetector\n"
        "d = FeatureDetector(torch.nn.Linear(4, 3), 'knn').fit(torch.randn(9, 4))\n"
        "d.predict(torch.randn(9, 4))\n"
        "print([name for name in ('pytorch_ood', 'sklearn', 'torchvision') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", DETECTORS)
def test_on_a_gpu_it_answers_as_on_the_cpu(name: Any) -> None:
    if name not in OWN:
        pytest.importorskip("pytorch_ood")
    here = FeatureDetector(network(), name).fit((X, Y))
    expected = here.predict(FAR).ood_score
    there = FeatureDetector(network().to("cuda"), name).fit((X, Y)).predict(FAR)
    assert there.ood_score.device.type == "cuda"
    near = 1e-3 * float(expected.abs().max())
    torch.testing.assert_close(there.ood_score.cpu(), expected, rtol=1e-3, atol=near)
