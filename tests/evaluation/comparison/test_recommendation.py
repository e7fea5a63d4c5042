import json
import math

import pytest
import torch

from hesitant.evaluation.comparison.compare import Comparison, Cost
from hesitant.evaluation.comparison.recommendation import recommend
from hesitant.evaluation.deferral.policy import DeferralPolicy
from hesitant.prediction import Prediction

NUM_CLASSES = 3


def graded(num_inputs, seed, *, error_rate=0.02, floor=1e-4, ceiling=0.4):
    """Inputs whose chance of an error grows with their uncertainty, evenly spread over its range."""
    generator = torch.Generator().manual_seed(seed)
    doubt = floor + (ceiling - floor) * torch.rand(num_inputs, generator=generator, dtype=torch.float64)
    wrong = torch.rand(num_inputs, generator=generator) < 2 * error_rate * doubt / ceiling
    return made_of(doubt, wrong.long())


def made_of(doubt, targets=None):
    """Label 0 with these uncertainties; a target of 1 makes it wrong."""
    probs = torch.stack([1 - doubt, doubt / 2, doubt / 2], dim=1)
    return Prediction(probs, targets=targets)


def alike_targets(predictions):
    """Predictions share their targets: here a class index is moved so that each keeps its own errors."""
    first = next(iter(predictions.values())).targets
    shared = {}
    for name, prediction in predictions.items():
        wrong = prediction.targets != 0
        label = torch.where(wrong, (first + 1) % NUM_CLASSES, first)
        columns = (torch.arange(NUM_CLASSES) - label.unsqueeze(1)) % NUM_CLASSES
        shared[name] = Prediction(prediction.probs.gather(1, columns), targets=first)
    return shared


def compared(predictions, **options):
    return Comparison.from_predictions(alike_targets(predictions), **options)


def test_the_policy_has_no_part_in_the_half_that_it_is_checked_on():
    comparison = compared({"a": graded(4000, 1), "b": graded(4000, 2)})
    found = recommend(comparison, max_risk=0.02)
    rows = torch.ones(4000, dtype=torch.bool)
    rows[found.check] = False
    prediction = comparison.predictions["a"]
    policy = DeferralPolicy.calibrate(prediction[rows], max_risk=0.02, delta=0.025)
    outcome = found.outcomes["a"]
    assert outcome.policy == policy
    check = prediction[found.check]
    accepted = policy.accept(check)
    assert (outcome.num_checked, outcome.num_answered) == (2000, int(accepted.sum()))
    assert outcome.num_wrong == int((check.labels != check.targets)[accepted].sum())
    assert found.num_calibration == 2000


def test_the_method_that_answers_most_is_recommended():
    data = {"poor": graded(6000, 1, error_rate=0.06), "good": graded(6000, 2, error_rate=0.02)}
    found = recommend(compared(data), max_risk=0.02)
    assert found.method == "good"
    assert found.promised
    assert found.outcomes["good"].coverage > found.outcomes["poor"].coverage + 0.1


def test_of_equals_the_one_of_the_lowest_nll_is_taken_however_fast_the_others_are():
    predictions = {"a": graded(4000, 1, error_rate=0.001), "b": graded(4000, 1, error_rate=0.001, ceiling=0.1)}
    for milliseconds in (0.1, 10.0, None):
        costs = {"a": Cost(milliseconds=1.0, training_seconds=1.0), "b": Cost(milliseconds, 7, milliseconds)}
        found = recommend(compared(predictions, costs=costs))
        assert (found.method, found.equals, found.decided_by) == ("b", ("a",), "nll")


@pytest.mark.parametrize(
    ("parameters", "expected", "decided_by"),
    [((9, 7, 8), "b", "parameters"), ((9, 7, 7), "b", "order"), ((None, 8, 9), "b", "parameters"),
     ((None, None, None), "a", "order"), ((0, None, None), "a", "parameters")],
)  # fmt: skip
def test_of_equals_with_one_nll_the_smallest_is_taken_and_then_the_first(parameters, expected, decided_by):
    predictions = {name: graded(4000, 1, error_rate=0.001) for name in "abc"}
    costs = {
        name: Cost(1 / place, number, 1 / place)
        for place, (name, number) in enumerate(zip("abc", parameters, strict=True), 1)
    }
    found = recommend(compared(predictions, costs=costs))
    assert (found.method, found.decided_by) == (expected, decided_by)
    assert {found.method, *found.equals} == set("abc")


def test_a_method_without_equals_was_decided_by_nothing_else():
    data = {"poor": graded(6000, 1, error_rate=0.06), "good": graded(6000, 2, error_rate=0.02)}
    assert recommend(compared(data), max_risk=0.02).decided_by is None
    assert recommend(compared({"alone": graded(4000, 1)})).decided_by is None


def test_a_seed_draws_the_split():
    comparison = compared({"a": graded(1000, 1)})
    splits = [recommend(comparison, seed=seed).check for seed in (0, 0, 1)]
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])
    assert torch.equal(splits[0], recommend(comparison).check)


def test_a_method_that_notices_what_it_does_not_know_is_preferred_to_one_without_a_single_error():
    # Both make hardly an error, so both may promise the risk for all of their data.
    data = {"blind": graded(2000, 1, error_rate=0.0), "aware": graded(2000, 2, error_rate=0.001)}
    ood = {
        "far": {
            "blind": made_of(torch.full((300,), 1e-9, dtype=torch.float64)),
            "aware": made_of(torch.full((300,), 0.6, dtype=torch.float64)),
        }
    }
    costs = {"blind": Cost(milliseconds=1.0), "aware": Cost(milliseconds=9.0)}
    found = recommend(compared(data, ood=ood, costs=costs), max_risk=0.02)
    assert (found.method, found.equals) == ("aware", ())
    assert found.outcomes["aware"].handed_over == {"far": 1.0}
    assert found.outcomes["blind"].handed_over == {"far": 0.0}
    assert found.outcomes["aware"].coverage == pytest.approx(0.95, abs=0.03)


def test_the_guard_hands_over_its_share_and_is_not_there_without_out_of_domain_sets():
    data = {"a": graded(4000, 1, error_rate=0.0)}
    ood = {"far": {"a": made_of(torch.full((10,), 0.6, dtype=torch.float64))}}
    for guard in (0.0, 0.1, 0.3):
        outcome = recommend(compared(data, ood=ood), guard=guard).outcomes["a"]
        assert outcome.policy.coverage == pytest.approx(1 - guard, abs=1e-3)
        assert outcome.coverage == pytest.approx(1 - guard, abs=0.04)
    assert recommend(compared(data), guard=0.3).outcomes["a"].coverage == 1.0


def test_the_promise_holds_with_a_guard_too():
    # The risk is known: P(wrong | doubt < t) = error_rate * t / ceiling, of which the guard's threshold takes a part.
    max_risk, delta, error_rate, ceiling, broken = 0.05, 0.2, 0.06, 0.4, 0
    far = {"far": {"a": made_of(torch.full((5,), 0.6, dtype=torch.float64))}}
    figures = {"a": {"nll": 0.0, "milliseconds": None}}
    for seed in range(120):
        data = {"a": graded(1000, seed, error_rate=error_rate, floor=0.0, ceiling=ceiling)}
        comparison = Comparison(data, far, "confidence", (), figures, {}, {"aurc": ()})
        policy = recommend(comparison, max_risk=max_risk, delta=delta, guard=0.1).outcomes["a"].policy
        broken += policy is not None and error_rate * min(policy.threshold, ceiling) / ceiling > max_risk
    assert broken <= delta * 120 + 3 * math.sqrt(120 * delta * (1 - delta))


def test_where_nothing_can_be_promised_the_refusal_says_what_could_be():
    found = recommend(compared({"a": graded(200, 1), "b": graded(200, 2)}))
    assert not found.promised
    assert all("cannot be promised" in outcome.refusal for outcome in found.outcomes.values())
    assert found.method in ("a", "b")
    assert "half of one input" in recommend(compared({"one": graded(1, 1)})).outcomes["one"].refusal


def test_it_is_the_same_each_time_and_goes_into_json():
    comparison = compared({"a": graded(3000, 1), "b": graded(3000, 2)})
    first, again = recommend(comparison, max_risk=0.03), recommend(comparison, max_risk=0.03)
    assert first.to_dict() == again.to_dict()
    content = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert content["outcomes"]["a"]["num_checked"] == 1500


@pytest.mark.parametrize(("name", "value"), [("max_risk", 0.0), ("max_risk", 1.5), ("delta", 1.0), ("guard", -0.1)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        recommend(compared({"a": graded(50, 1)}), **{name: value})
