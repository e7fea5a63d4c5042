import itertools
import json
import math
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, kstest
from tests.evaluation.populations import as_prediction, growing, populations, ranked
from torch import nn

from hesitant import SNGP, DeepEnsemble
from hesitant.detection.scores import SCORES, uncertainty
from hesitant.evaluation.deferral.fixed_sequence import FixedSequences
from hesitant.evaluation.deferral.policy import DeferralPolicy
from hesitant.prediction import Prediction, UnavailableError

POLICY = DeferralPolicy(
    threshold=0.1, score="confidence", num_calibration=100, num_accepted=80, num_errors=1, max_risk=0.05, delta=0.05
)
# Attributes and files that no calibration makes, and what is said of them.
IMPOSSIBLE = {
    "no number": ({"threshold": None}, "threshold is None"),
    "a boolean": ({"threshold": True}, "threshold is True"),
    "a boolean risk": ({"max_risk": True}, "max_risk is True"),
    "a huge integer": ({"threshold": 10**400}, "threshold is an integer of 401 digits"),
    "errors over accepted": ({"num_errors": 81}, "num_errors is 81, num_accepted 80"),
    "more errors than can be": ({"num_errors": 4}, "num_errors 4 of num_accepted 80, which cannot promise it"),
    "fewer inputs than it takes": ({"num_accepted": 58}, "num_accepted 58, which cannot promise it"),
    "unknown errors": ({"num_errors": None}, "num_errors is None, expected a number"),
    "nothing accepted": ({"num_accepted": 0, "num_errors": 0}, "num_accepted 0"),
    "a boolean count": ({"num_errors": True}, "num_errors is True"),
    "a huge count": ({"num_calibration": 10**400}, "num_calibration 1000"),
    "a threshold below all scores": ({"threshold": 0.0}, "threshold is 0.0 .* which no confidence score is below"),
    "all and not all": ({"threshold": math.inf}, "threshold is inf and num_accepted 80, expected all 100"),
    "over budget": ({"budget": 0.1, "max_risk": None, "delta": None}, "budget is 0.1, num_accepted 80 of 100"),
    "a digest of another kind": ({"calibration": 7}, "calibration is 7, expected 16 hex digits"),
    "no digest": ({"calibration": "0123"}, "calibration is '0123', expected 16 hex digits"),
    "a guard of all": ({"guard": 1.0}, "guard is 1.0"),
    "a threshold of no guard": ({"guard_threshold": 0.5}, "guard is 0 and guard_threshold 0.5"),
    "a guard of no number": ({"guard": 0.1, "guard_threshold": None}, "guard_threshold is None"),
    "a guard above the budget": ({"budget": 0.2, "guard": 0.2, "max_risk": None, "delta": None}, "guard is 0.2 and"),
    "a guard by what is no score": ({"guard_score": "margin"}, "guard_score is 'margin'"),
    "a nested score": ({"score": ["confidence"]}, r"score is \['confidence'\]"),
}


def saturated(num_inputs: int, dtype=torch.float64) -> Prediction:
    """Confidences that all round to 1 in any dtype, in strict order; right but for the least confident tenth."""
    logits = torch.stack([torch.linspace(90, 60, num_inputs), torch.zeros(num_inputs)], dim=-1).to(dtype)
    return Prediction.from_logits(logits, targets=(torch.arange(num_inputs) >= 0.9 * num_inputs).long())


def logits_prediction(num_inputs: int, dtype=torch.float64, seed: int = 0) -> Prediction:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(num_inputs, 4, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    return Prediction.from_logits(logits.to(dtype), targets=targets)


@pytest.mark.parametrize("name", populations(0.05))
def test_it_answers_what_the_fixed_sequences_choose(name):
    u, wrong = populations(0.05)[name].sample(1500, np.random.default_rng(0))
    expected = FixedSequences.plan(1500, 0.05, 0.05).largest_accepted(ranked(u, wrong))
    if expected == 0:
        with pytest.raises(ValueError, match="cannot be promised"):
            DeferralPolicy.calibrate(as_prediction(u, wrong), max_risk=0.05)
        return
    policy = DeferralPolicy.calibrate(as_prediction(u, wrong), max_risk=0.05)
    accepted = policy.accept(as_prediction(u, wrong)).numpy()
    assert accepted.sum() == policy.num_accepted == expected
    assert wrong[accepted].sum() == policy.num_errors
    assert u[accepted].max() < u[~accepted].min(initial=1)
    assert [policy.coverage, policy.risk] == pytest.approx([accepted.mean(), wrong[accepted].mean()])
    assert policy.risk_bound == policy.max_risk == 0.05


def test_299_inputs_without_an_error_are_enough_for_a_hundredth():
    right = Prediction(torch.tensor([[0.9, 0.1]]).repeat(299, 1), targets=[0] * 299)
    policy = DeferralPolicy.calibrate(right)
    assert (policy.max_risk, policy.delta, policy.num_accepted, policy.threshold) == (0.01, 0.05, 299, math.inf)
    with pytest.raises(ValueError, match=r"298 inputs, 0 of them wrong: it takes 299 .* 1 more at least"):
        DeferralPolicy.calibrate(right[:298])
    with pytest.raises(ValueError, match=r"on these inputs max_risk=0\.011 could be"):
        DeferralPolicy.calibrate(right[:298])


def test_a_refusal_says_how_many_inputs_it_would_take_and_what_they_could_promise():
    u, wrong = growing(0.0).sample(300, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"about \d+ inputs of this kind would do") as refusal:
        DeferralPolicy.calibrate(as_prediction(u, wrong))
    could = float(str(refusal.value).split("on these inputs max_risk=")[1].split(" ")[0])
    assert DeferralPolicy.calibrate(as_prediction(u, wrong), max_risk=could).num_accepted > 0


def test_a_refusal_of_a_model_that_is_always_wrong():
    wrong = as_prediction(np.linspace(0, 0.9, 500), np.ones(500, dtype=bool))
    with pytest.raises(ValueError, match=r"errors are too frequent .* not even a risk below 1 can be promised"):
        DeferralPolicy.calibrate(wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_saturated_confidences_keep_their_order(dtype):
    prediction = saturated(1000, dtype)
    assert bool((prediction.probs[:, 0] == 1).all())
    policy = DeferralPolicy.calibrate(prediction, max_risk=0.02)
    accepted = policy.accept(prediction)
    assert 850 < policy.num_accepted < 930
    assert torch.equal(accepted, torch.arange(1000) < policy.num_accepted)


def test_float32_and_float64_answer_alike():
    single, double = logits_prediction(3000, torch.float32), logits_prediction(3000)
    policy = DeferralPolicy.calibrate(double, max_risk=0.05)
    fresh = logits_prediction(3000, seed=1)
    close = (uncertainty(fresh, "confidence") / policy.threshold - 1).abs() < 1e-5
    differ = policy.accept(fresh) != policy.accept(logits_prediction(3000, torch.float32, seed=1))
    assert not bool((differ & ~close).any())
    assert DeferralPolicy.calibrate(single, max_risk=0.05).num_accepted == policy.num_accepted


def test_an_input_on_the_threshold_is_handed_over_however_it_is_batched():
    prediction = logits_prediction(2000, torch.float32)
    policy = DeferralPolicy.calibrate(prediction, max_risk=0.05)
    whole = policy.accept(prediction)
    assert int((uncertainty(prediction, "confidence") == policy.threshold).sum()) == 1
    for parts in (torch.arange(2000).split(1), torch.arange(2000).split(7), [torch.arange(1999, -1, -1)]):
        for part in parts:
            assert torch.equal(policy.accept(prediction[part]), whole[part])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("score", ["confidence", "predictive_entropy", "energy"])
def test_cuda_answers_as_the_cpu_does(score):
    prediction = logits_prediction(20_000, torch.float32)
    policy = DeferralPolicy.calibrate(prediction, max_risk=0.05, score=score)
    assert DeferralPolicy.calibrate(prediction.to("cuda"), max_risk=0.05, score=score) == policy
    accepted = policy.accept(prediction.to("cuda"))
    assert accepted.is_cuda
    assert torch.equal(accepted.cpu(), policy.accept(prediction))


def test_every_score_can_decide():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(5, 400, 3, generator=generator).mul(3).softmax(-1)
    logits = torch.randn(400, 3, generator=generator)
    prediction = Prediction.from_samples(samples, logits=logits, logit_variance=logits.square())
    prediction = prediction.with_targets(prediction.labels)
    for score in SCORES:
        policy = DeferralPolicy.calibrate(prediction, budget=0.25, score=score)
        assert policy.num_accepted == int(policy.accept(prediction).sum()) == 301
        largest = uncertainty(prediction, score)[policy.accept(prediction)].max()
        assert bool((uncertainty(prediction, score)[~policy.accept(prediction)] > largest).all())
    with pytest.raises(UnavailableError, match="logit_variance"):
        DeferralPolicy.calibrate(prediction, budget=0.25, score="logit_variance").accept(Prediction(prediction.probs))


def test_targets_may_be_given_apart():
    prediction = logits_prediction(2000)
    apart = DeferralPolicy.calibrate(Prediction(prediction.probs), targets=prediction.targets, max_risk=0.05)
    assert apart.num_accepted == DeferralPolicy.calibrate(prediction, max_risk=0.05).num_accepted


def test_accepting_nothing_of_nothing():
    assert POLICY.accept(logits_prediction(10)[:0]).shape == (0,)


# Budget


def test_a_budget_hands_over_the_most_uncertain():
    prediction = logits_prediction(999)
    policy = DeferralPolicy.calibrate(prediction, budget=0.1)
    scores = uncertainty(prediction, "confidence")
    assert policy.num_accepted == 900
    assert torch.equal(policy.accept(prediction), scores <= scores.sort().values[899])
    assert policy.num_errors == int((prediction.labels != prediction.targets)[policy.accept(prediction)].sum())
    assert [policy.budget, policy.risk_bound, policy.max_risk, policy.delta] == [0.1, None, None, None]


def test_a_budget_needs_no_targets():
    policy = DeferralPolicy.calibrate(Prediction(logits_prediction(50).probs), budget=0.5)
    assert [policy.num_errors, policy.risk] == [None, None]


def test_the_share_handed_over_of_new_inputs_is_the_beta_variable_stated():
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        u = generator.random(99)
        threshold = DeferralPolicy.calibrate(as_prediction(u, u < 0), budget=0.1).threshold
        shares.append(1 - 2 * threshold)  # of uniform u
    assert kstest(shares, beta(100 - 90, 90).cdf).pvalue > 1e-3
    assert np.mean(shares) == pytest.approx(0.1, abs=0.004)


def test_a_budget_keeps_tied_inputs_together_and_hands_over_no_more():
    tied = as_prediction(np.repeat([0.1, 0.5, 0.9], [50, 45, 5]), np.zeros(100, dtype=bool))
    assert DeferralPolicy.calibrate(tied, budget=0.1).num_accepted == 95
    assert DeferralPolicy.calibrate(tied, budget=0.5).num_accepted == 95
    assert DeferralPolicy.calibrate(tied, budget=0.6).num_accepted == 50
    assert DeferralPolicy.calibrate(tied, budget=0.01).num_accepted == 100


def test_a_budget_promises_no_risk():
    for settings in ({"max_risk": 0.05}, {"delta": 0.1}):
        with pytest.raises(ValueError, match="a budget promises no risk"):
            DeferralPolicy.calibrate(logits_prediction(50), budget=0.1, **settings)


def test_a_budget_below_one_input_is_refused():
    with pytest.raises(ValueError, match="9 inputs, expected at least 19"):
        DeferralPolicy.calibrate(logits_prediction(9), budget=0.05)
    assert DeferralPolicy.calibrate(logits_prediction(19), budget=0.05).num_accepted == 19


# What is refused


@pytest.mark.parametrize("name", ["max_risk", "delta", "budget"])
def test_shares_out_of_range_are_named(name):
    for value in (0, 1e-13, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match=f"{name} is {value}, expected a number from 1e-12 to below 1"):
            DeferralPolicy.calibrate(logits_prediction(10), **{name: value})


def test_other_bad_arguments_are_named():
    prediction = logits_prediction(400)
    with pytest.raises(TypeError, match="max_risk is '1%'"):
        DeferralPolicy.calibrate(prediction, max_risk="1%")
    with pytest.raises(ValueError, match="score is 'margin', expected one of 'confidence'"):
        DeferralPolicy.calibrate(prediction, score="margin")
    with pytest.raises(ValueError, match="no targets"):
        DeferralPolicy.calibrate(Prediction(prediction.probs))
    with pytest.raises(ValueError, match="0 inputs"):
        DeferralPolicy.calibrate(prediction[:0])
    with pytest.raises(ValueError, match="0 inputs"):
        DeferralPolicy.calibrate(prediction[:0], budget=0.1)
    with pytest.raises(UnavailableError):
        DeferralPolicy.calibrate(prediction, score="mutual_information")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": math.nan}, "threshold is nan"),
        ({"threshold": "0.1"}, "threshold is '0.1'"),
        ({"num_accepted": 101}, "num_accepted 101"),
        ({"num_errors": -1}, "num_errors is -1"),
        ({"num_calibration": 100.0}, "num_calibration is 100.0"),
        ({"delta": None}, "max_risk is 0.05, delta None"),
        ({"budget": 0.1}, "expected max_risk and delta, or budget alone"),
        *IMPOSSIBLE.values(),
    ],
)
def test_a_policy_that_cannot_be_is_refused(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        replace(POLICY, **change)


@pytest.mark.parametrize(
    ("max_risk", "delta"), [(0.01, 0.6), (0.05, 0.05), (0.3, 1e-6), (0.3, 0.99), (0.9, 1e-6), (0.9, 0.6)]
)
def test_whatever_calibration_can_make_is_no_policy_that_cannot_be(max_risk, delta):
    made = 0
    for name, population in populations(max_risk).items():
        for num_inputs in (30, 400):
            u, wrong = population.sample(num_inputs, np.random.default_rng(num_inputs))
            promised = FixedSequences.plan(num_inputs, max_risk, delta).largest_accepted(ranked(u, wrong)) > 0
            if promised:
                policy = DeferralPolicy.calibrate(as_prediction(u, wrong), max_risk=max_risk, delta=delta)
                assert replace(policy) == policy, name
                made += 1
    assert made > 0


@pytest.mark.parametrize("budget", [0.02, 0.1, 1 / 3, 0.999])
def test_whatever_a_budget_can_make_is_no_policy_that_cannot_be(budget):
    for num_inputs, values in itertools.product((49, 100, 1001), (1.0, 3.0, 1e9)):  # many ties, or none
        u = np.floor(np.random.default_rng(0).random(num_inputs) * values) / values * 0.5
        policy = DeferralPolicy.calibrate(as_prediction(u, u < 0), budget=budget)
        assert replace(policy) == policy


def test_it_is_immutable():
    with pytest.raises(FrozenInstanceError):
        POLICY.threshold = 0.2


# Saving


@pytest.mark.parametrize(
    "threshold", [0.1, 1 / 3, 1e-300, math.nextafter(0.5, 1), 5e-324, -37.123456789012345, math.inf]
)
def test_a_saved_policy_comes_back_with_the_same_bits(threshold, tmp_path):
    policy = replace(POLICY, threshold=threshold, score="energy", num_accepted=100, calibration="00ff" * 4)
    policy.save(tmp_path / "policy.json")
    loaded = DeferralPolicy.load(tmp_path / "policy.json")
    assert asdict(loaded) == asdict(policy)
    assert loaded.threshold.hex() == threshold.hex()
    json.loads((tmp_path / "policy.json").read_text(), parse_constant=pytest.fail)  # no Infinity, which is no JSON


def test_a_loaded_policy_accepts_alike(tmp_path):
    prediction = logits_prediction(2000, torch.float32)
    for policy in (
        DeferralPolicy.calibrate(prediction, max_risk=0.05),
        DeferralPolicy.calibrate(Prediction(prediction.probs), budget=0.2),
    ):
        policy.save(str(tmp_path / "policy.json"))
        loaded = DeferralPolicy.load(tmp_path / "policy.json")
        assert loaded == policy
        assert torch.equal(loaded.accept(prediction), policy.accept(prediction))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "holds no DeferralPolicy"),
        ({"version": 1}, "version 1, expected 4"),
        ({"version": 4.0}, "version 4.0, expected 4"),
        ({"version": "4"}, "version '4', expected 4"),
        ({"threshold": "low"}, "was changed: threshold is 'low'"),
        ({"score": "margin"}, "was changed: score is 'margin'"),
        ({"max_risk": 1.5}, "was changed: max_risk is 1.5"),
        ({"num_accepted": 7.5}, "was changed: num_accepted is 7.5"),
        ({"extra": 1}, "'extra'"),
        ({"threshold": math.nan}, "is no JSON .it holds NaN"),
        ({"threshold": {"a": [1]}}, "was changed: threshold is {'a'"),
        ({"threshold": "inf"}, "was changed: threshold is inf and num_accepted 80"),
    ],
)
def test_a_file_that_was_changed_is_refused(change, message, tmp_path):
    assert_refused_from_a_file(change, message, tmp_path / "policy.json")


def test_a_file_of_a_policy_that_cannot_be_is_refused(tmp_path):
    for change, message in IMPOSSIBLE.values():
        if change.get("threshold") != math.inf:  # which JSON cannot say
            assert_refused_from_a_file(change, message, tmp_path / "policy.json")


def assert_refused_from_a_file(change, message, path):
    POLICY.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as raised:
        DeferralPolicy.load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"threshold": 0.1', '"threshold": 1e400', "1e400, a number that is too large"),
        ('"threshold": 0.1', '"threshold": -Infinity', "-Infinity"),
        ('"threshold": 0.1', '"threshold": 0.1, "threshold": 0.5', "'threshold' twice"),
        ('"threshold": 0.1', '"threshold": ' + "[" * 30_000, "nested too deeply"),
        ('"threshold": 0.1', '"threshold": ' + " " * 70_000 + "0.1", "is too large to be a policy"),
        ('"num_errors": 1', '"num_errors": ' + "1" * 5000, "is no JSON"),
    ],
    ids=["too large", "infinite", "twice", "nested", "long", "digits"],
)
def test_json_that_only_some_can_read_is_refused(old, new, message, tmp_path):
    path = tmp_path / "policy.json"
    POLICY.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as raised:
        DeferralPolicy.load(path)
    assert str(path) in str(raised.value)


def test_a_file_that_cannot_be_written_leaves_the_policy_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "policy.json"
    POLICY.save(path)

    def half(self, text, **options):
        self.write_bytes(text.encode()[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_text", half)
    with pytest.raises(KeyboardInterrupt):
        replace(POLICY, threshold=0.2).save(path)
    assert DeferralPolicy.load(path) == POLICY
    assert list(tmp_path.iterdir()) == [path]


# Predictions of another calibration


@pytest.mark.parametrize("options", [{"max_risk": 0.05}, {"budget": 0.2}])
@pytest.mark.parametrize(
    ("made_with", "asked_with", "message"),
    [
        ("0" * 16, "1" * 16, "made by another method, or with another temperature, mean-field factor or posterior"),
        ("0" * 16, None, r"prediction was made by hand, .* by a method \(0000000000000000\)"),
        (None, "0" * 16, r"a method made prediction \(0000000000000000\), .* were made by hand"),
    ],
)
def test_a_policy_refuses_predictions_of_another_calibration(options, made_with, asked_with, message, tmp_path):
    prediction = logits_prediction(2000).with_calibration(made_with)
    policy = DeferralPolicy.calibrate(prediction, **options)
    assert policy.calibration == made_with
    accepted = policy.accept(prediction)
    policy.save(tmp_path / "policy.json")
    loaded = DeferralPolicy.load(tmp_path / "policy.json")
    assert torch.equal(loaded.accept(prediction), accepted)
    prediction = prediction.with_calibration(asked_with)
    for refusing in (policy, loaded):
        with pytest.raises(ValueError, match=rf"{message}.*: predict as for the calibration data, or calibrate"):
            refusing.accept(prediction)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "no JSON", "\ud800"], ids=["empty", "list", "dict", "text", "bytes"]
)
def test_a_file_of_something_else_is_refused(content, tmp_path):
    (tmp_path / "policy.json").write_bytes(
        content.encode("utf-16", "surrogatepass") if content > "\x7f" else content.encode()
    )
    with pytest.raises(ValueError, match=r"policy\.json (is no JSON|holds no DeferralPolicy)"):
        DeferralPolicy.load(tmp_path / "policy.json")


def test_its_repr_says_what_it_promises():
    assert repr(POLICY) == (
        "DeferralPolicy(answers confidence score < 0.1; risk <= 0.05 with probability 0.95; 80.0% of 100 inputs with "
        "error rate 0.0125)"
    )
    options = {"max_risk": None, "delta": None, "budget": 0.1, "num_errors": None, "num_accepted": 100}
    everything = replace(POLICY, threshold=math.inf, **options)
    assert repr(everything) == "DeferralPolicy(answers everything; hands over 0.1; 100.0% of 100 inputs)"


def known_and_unknown(num_inputs: int = 2000, seed: int = 0) -> tuple[Prediction, Prediction]:
    """Inputs whose confidences are right, half of the classes ruled out, and others that are sure and rule out less."""
    known = logits_prediction(num_inputs, seed=seed)
    ruled_out = torch.full((num_inputs, 4), -30.0, dtype=torch.float64)
    unknown = torch.zeros(num_inputs, 8, dtype=torch.float64)
    unknown[:, 0] = 12
    with_all_classes = Prediction.from_logits(torch.cat([known.logits, ruled_out], 1), targets=known.targets)
    return with_all_classes, Prediction.from_logits(unknown)


def test_a_guard_hands_over_what_a_confidence_cannot_tell():
    known, unknown = known_and_unknown()
    trusting = DeferralPolicy.calibrate(known, max_risk=0.05)
    guarded = DeferralPolicy.calibrate(known, max_risk=0.05, guard=0.05)
    assert bool(trusting.accept(unknown).all())
    assert not bool(guarded.accept(unknown).any())
    assert guarded.num_accepted == int(guarded.accept(known).sum())
    assert int((known.ood_score >= guarded.guard_threshold).sum()) == 100
    assert (guarded.num_calibration, guarded.guard) == (2000, 0.05)
    assert "ood_score < " in repr(guarded)


def of_two_classes(single: bool, members: int, score: Literal["logits", "knn"] = "logits") -> SNGP | DeepEnsemble:
    """SNGPs that tell the sign of the first of two numbers."""
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    targets = (x[:, 0] > 0).float() if single else (x[:, 0] > 0).long()
    criterion = F.binary_cross_entropy_with_logits if single else F.cross_entropy
    sngps = []
    for seed in range(members):
        linear, generator = nn.Linear(2, 1 if single else 2), torch.Generator().manual_seed(seed)
        model = SNGP(linear, num_inducing=256, kernel_scale=1.0, ood_score=score, generator=generator)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            output = model(x)
            criterion(output[:, 0] if single else output, targets).backward()
            optimizer.step()
        model.fit_covariance(x)
        sngps.append(model)
    return sngps[0] if members == 1 else DeepEnsemble(sngps)


@pytest.mark.parametrize("single", [False, True], ids=["two logits", "one logit"])
@pytest.mark.parametrize("members", [1, 2])
def test_of_two_classes_an_sngp_is_guarded_by_its_variance(single, members):
    """`softmax f` is one number there: a guard by the `ood_score` would ask what the confidence has answered."""
    model = of_two_classes(single, members)
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    prediction = model.predict((x, (x[:, 0] > 0).long()))
    guarded = DeferralPolicy.calibrate(prediction, max_risk=0.2, guard=0.05)
    assert guarded.guard_score == "logit_variance"
    between, neither = torch.tensor([[0.02, 0.0]]), torch.tensor([[30.0, -30.0]])
    assert guarded.accept(model.predict(torch.cat([between, neither]))).tolist() == [True, False]
    assert DeferralPolicy.calibrate(prediction, max_risk=0.2, guard=0.05, guard_score="energy").guard_score == "energy"


def test_a_guard_of_two_classes_needs_no_logits():
    p, variance = torch.rand(50, 1), torch.rand(50, 2)
    prediction = Prediction(torch.cat([p, 1 - p], 1), logit_variance=variance)
    assert DeferralPolicy.calibrate(prediction, budget=0.3, guard=0.1).guard_score == "logit_variance"


def test_a_guard_is_the_ood_score_where_that_asks_a_question_of_its_own():
    detector = of_two_classes(False, 1, "knn").predict(torch.randn(50, 2))
    by_hand = detector.with_ood_score(torch.rand(50))
    sevens = Prediction.from_logits(torch.randn(50, 7), logit_variance=torch.rand(50, 7))
    for prediction in (detector, by_hand, sevens, Prediction(torch.tensor([[0.3, 0.7]] * 25 + [[0.5, 0.5]] * 25))):
        assert DeferralPolicy.calibrate(prediction, budget=0.3, guard=0.1).guard_score == "ood_score"


def test_a_guard_is_a_part_of_the_budget():
    shares = []
    for seed in range(20):
        known = known_and_unknown(500, seed)[0]
        policy = DeferralPolicy.calibrate(known, budget=0.2, guard=0.1)
        shares.append(1 - float(policy.accept(known_and_unknown(5000, 100 + seed)[0]).double().mean()))
        assert policy.budget == 0.2
    assert np.mean(shares) == pytest.approx(0.2, abs=0.01)
    with pytest.raises(ValueError, match=r"guard is 0\.2 and budget 0\.2, expected less"):
        DeferralPolicy.calibrate(known, budget=0.2, guard=0.2)


def test_a_guard_is_saved_and_ranks_by_the_score_that_it_is_given(tmp_path):
    known, _ = known_and_unknown()
    policy = DeferralPolicy.calibrate(known, max_risk=0.05, guard=0.1, guard_score="predictive_entropy")
    policy.save(tmp_path / "policy.json")
    assert DeferralPolicy.load(tmp_path / "policy.json") == policy
    kept = uncertainty(known, "predictive_entropy") < policy.guard_threshold
    assert int(kept.sum()) == 1800
    assert bool(kept[policy.accept(known)].all())


def test_a_guard_by_a_score_that_tells_nothing_apart_is_refused():
    same = Prediction(probs=torch.full((50, 2), 0.5), targets=torch.zeros(50, dtype=torch.long))
    with pytest.raises(ValueError, match=r"guard is 0\.1, and the ood_score of all 50 inputs is .*: it tells none"):
        DeferralPolicy.calibrate(same, max_risk=0.5, guard=0.1)


def test_so_few_inputs_that_a_guard_is_less_than_one_guard_nothing():
    known = known_and_unknown(100)[0]
    policy = DeferralPolicy.calibrate(known, budget=0.5, guard=0.005)
    assert math.isinf(policy.guard_threshold)
