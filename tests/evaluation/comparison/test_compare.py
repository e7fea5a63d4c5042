import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hesitant
from hesitant.evaluation import accuracy, aupr, aurc, auroc, bootstrap, ece, fpr95, nll
from hesitant.evaluation.comparison.columns import Column, figure_text
from hesitant.evaluation.comparison.compare import Comparison, Cost, compare
from hesitant.evaluation.comparison.noise import indistinguishable
from hesitant.prediction import Prediction, UnavailableError

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(300, 4, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
FAR = 5 * torch.randn(80, 4, generator=GENERATOR)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


METHODS = {
    "plain": hesitant.Deterministic(network(0)),
    "MC dropout": hesitant.MCDropout(network(0), num_samples=4),
    "ensemble": hesitant.DeepEnsemble([network(0), network(1)]),
}
OPTIONS = {"MC dropout": {"seed": 3}}


def random_logits(num_inputs, seed, scale=1.0):
    return scale * torch.randn(num_inputs, 3, generator=torch.Generator().manual_seed(seed))


def prediction_of(targets, seed, signal):
    logits = random_logits(len(targets), seed)
    logits[torch.arange(len(targets)), targets] += signal
    return Prediction.from_logits(logits, targets=targets)


@pytest.fixture(scope="module")
def comparison():
    histories = {"plain": SimpleNamespace(seconds=12.5)}
    return compare(METHODS, (X, Y), ood={"far": FAR}, histories=histories, predict_options=OPTIONS)


def test_figures_are_those_of_the_metrics(comparison):
    for name, method in METHODS.items():
        prediction = method.predict(X, **OPTIONS.get(name, {})).with_targets(Y)
        far = method.predict(FAR, **OPTIONS.get(name, {}))
        figures = comparison.figures[name]
        assert figures["accuracy"] == pytest.approx(accuracy(prediction))
        assert figures["nll"] == pytest.approx(nll(prediction))
        assert figures["ece"] == pytest.approx(ece(prediction))
        assert figures["aurc"] == pytest.approx(aurc(prediction))
        for metric in (auroc, aupr, fpr95):
            assert figures[f"{metric.__name__}.far"] == pytest.approx(metric(prediction.ood_score, far.ood_score))


def test_costs_are_those_of_the_methods(comparison):
    plain, ensemble = comparison.figures["plain"], comparison.figures["ensemble"]
    assert plain["parameters"] == 4 * 16 + 16 + 16 * 3 + 3
    assert ensemble["parameters"] == 2 * plain["parameters"]
    assert plain["training_seconds"] == 12.5
    assert ensemble["training_seconds"] is None
    assert all(comparison.figures[name]["milliseconds"] > 0 for name in METHODS)


def test_a_shuffled_loader_is_read_alike_by_all_methods(comparison):
    loader = DataLoader(TensorDataset(X, Y), batch_size=32, shuffle=True)
    shuffled = compare(METHODS, loader, predict_options=OPTIONS)
    for name in ("plain", "ensemble"):
        torch.testing.assert_close(shuffled.predictions[name].probs, comparison.predictions[name].probs)
    assert torch.equal(shuffled.inputs[17], X[17])


def test_targets_of_out_of_domain_data_may_be_any(comparison):
    alike = compare({"plain": METHODS["plain"]}, (X, Y), ood={"far": TensorDataset(FAR, torch.full((80,), 99))})
    assert alike.figures["plain"]["auroc.far"] == comparison.figures["plain"]["auroc.far"]
    assert torch.equal(alike.ood_inputs["far"][5], FAR[5])


def test_the_score_ranks_by_what_was_asked_for():
    methods = {name: METHODS[name] for name in ("MC dropout", "ensemble")}
    by_information = compare(methods, (X, Y), ood={"far": FAR}, score="mutual_information", predict_options=OPTIONS)
    prediction = by_information.predictions["ensemble"]
    assert by_information.figures["ensemble"]["aurc"] == aurc(prediction, score="mutual_information")
    with pytest.raises(UnavailableError, match="'mutual_information' is not there for 'plain'"):
        compare(METHODS, (X, Y), score="mutual_information", predict_options=OPTIONS)


def test_intervals_are_those_of_the_bootstrap():
    predictions = {"a": prediction_of(Y, 1, 2.0), "b": prediction_of(Y, 2, 1.0)}
    with_intervals = Comparison.from_predictions(predictions, confidence_intervals=True)
    expected = bootstrap(accuracy, predictions["a"])
    estimate = with_intervals.estimates["a"]["accuracy"]
    assert estimate.value == expected.value
    assert estimate.standard_error == pytest.approx(expected.standard_error, rel=0.2)
    assert " ± " in str(with_intervals)
    assert with_intervals.to_dict()["methods"]["a"]["accuracy"]["low"] < estimate.value
    assert Comparison.from_predictions(predictions).estimates == {"a": {}, "b": {}}


def test_only_what_is_more_than_noise_is_marked():
    targets = torch.arange(2000) % 3
    strong, weak = prediction_of(targets, 1, 3.0), prediction_of(targets, 2, 1.0)
    alike = prediction_of(targets, 3, 3.0)
    best = Comparison.from_predictions({"strong": strong, "weak": weak, "alike": alike}).best
    for key in ("accuracy", "nll", "aurc"):
        assert best[key] == ("strong", "alike")
    best = Comparison.from_predictions({"strong": strong, "alike": alike}).best
    assert best["accuracy"] == best["nll"] == ()
    assert Comparison.from_predictions({"one": strong}).best["accuracy"] == ()


def test_noise_is_that_of_the_paired_difference():
    # The means differ by .01 with a standard error of .045, but each pair differs by .01: far beyond the paired noise.
    values = torch.randn(500, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    jitter = 0.001 * torch.randn(500, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    summaries = {"a": (values,), "b": (values + 0.01 + jitter,)}
    generator = torch.Generator().manual_seed(0)
    found = indistinguishable(summaries, lambda x: x.mean().item(), higher_is_better=True, generator=generator)
    assert found == ("b",)
    found = indistinguishable(summaries, lambda x: x.mean().item(), higher_is_better=False, generator=generator)
    assert found == ("a",)


def test_noise_falls_with_the_number_of_inputs_beyond_those_drawn():
    generator = torch.Generator().manual_seed(0)

    def alike(num_inputs, difference):
        values = torch.randn(num_inputs, generator=generator, dtype=torch.float64)
        other = torch.randn(num_inputs, generator=generator, dtype=torch.float64)
        summaries = {"a": (values - values.mean(),), "b": (other - other.mean() + difference,)}
        found = indistinguishable(summaries, lambda x: x.mean().item(), higher_is_better=True, generator=generator)
        return found == ()

    assert alike(5_000, 0.02)
    assert not alike(200_000, 0.02)


def test_as_text_the_table_is_aligned_and_80_characters_wide(comparison):
    lines = str(comparison).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["plain", "MC", "dropout", "ensemble"]
    assert [line.split()[0] for line in lines[1:4]] == ["accuracy", "NLL", "ECE"]
    many = {f"method number {place}": prediction_of(Y, place, 1.0) for place in range(9)}
    text = str(Comparison.from_predictions(many))
    assert max(map(len, text.splitlines())) <= 80
    assert all(name in text for name in many)
    assert "SNGP" not in repr(comparison)
    assert repr(comparison) == "Comparison(plain, MC dropout, ensemble; 300 inputs, far: 80)"


def test_markdown_has_the_same_cells_and_escapes_names():
    targets = torch.arange(900) % 3
    predictions = {"a|b": prediction_of(targets, 1, 3.0), "weak": prediction_of(targets, 2, 0.5)}
    table = Comparison.from_predictions(predictions)
    lines = table.to_markdown().splitlines()
    assert lines[0] == "|  | a\\|b | weak |"
    assert lines[2].startswith(f"| accuracy | **{figure_text(table.figures['a|b']['accuracy'], table.columns[0])}** |")


def test_pandas_has_a_row_a_method_and_a_column_a_figure(comparison):
    frame = comparison.to_pandas()
    assert list(frame.index) == list(METHODS)
    assert list(frame.columns[:5]) == ["accuracy", "nll", "ece", "aurc", "auroc.far"]
    assert frame.loc["plain", "nll"] == comparison.figures["plain"]["nll"]


def test_json_holds_every_figure_and_no_infinity():
    certain = Prediction(torch.eye(3)[torch.tensor([0, 1, 2, 0])], targets=torch.tensor([0, 1, 2, 1]))
    content = json.loads(json.dumps(Comparison.from_predictions({"certain": certain}).to_dict(), allow_nan=False))
    assert content["methods"]["certain"]["nll"] == "inf"
    assert content["methods"]["certain"]["accuracy"] == 0.75
    assert content["num_inputs"] == 4


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.97812, 4, ".9781"), (1.0, 4, "1.0000"), (12.3456, 4, "12.3456"), (0.00001, 4, "1e-05"), (0, 4, ".0000"),
        (1234567, 0, "1,234,567"), (None, 2, "-"), (math.inf, 4, "inf"),
    ],
)  # fmt: skip
def test_figures_are_written_as_papers_write_them(value, digits, text):
    assert figure_text(value, Column("key", "heading", digits, True, "")) == text


def test_mistakes_are_named():
    a, b = prediction_of(Y, 1, 1.0), prediction_of(Y, 2, 1.0)
    with pytest.raises(ValueError, match="predictions is empty"):
        Comparison.from_predictions({})
    with pytest.raises(ValueError, match=r"'b'.*has no targets"):
        Comparison.from_predictions({"a": a, "b": Prediction(b.probs)})
    with pytest.raises(ValueError, match=r"'b'.*shape \(299, 3\)"):
        Comparison.from_predictions({"a": a, "b": b[:299]})
    with pytest.raises(ValueError, match=r"'b'\]\.targets\[0\] differs from that of 'a'"):
        Comparison.from_predictions({"a": a, "b": b.with_targets((Y + 1) % 3)})
    with pytest.raises(ValueError, match=r"ood\['far'\] has the methods \['a'\]"):
        Comparison.from_predictions({"a": a, "b": b}, ood={"far": {"a": a}})
    with pytest.raises(ValueError, match=r"ood\['far'\]\['a'\] has 2 classes, the data 3: .* same model"):
        Comparison.from_predictions({"a": a}, ood={"far": {"a": Prediction(torch.full((9, 2), 0.5))}})
    with pytest.raises(ValueError, match="costs holds 'c'"):
        Comparison.from_predictions({"a": a}, costs={"c": Cost()})
    with pytest.raises(TypeError, match=r"'a'.*is a Tensor, expected a Prediction"):
        Comparison.from_predictions({"a": a.probs})
    with pytest.raises(ValueError, match=r"'a'.*has 0 inputs"):
        Comparison.from_predictions({"a": a[:0]})
    with pytest.raises(TypeError, match=r"'net'.*Sequential without predict: wrap .*Deterministic"):
        compare({"net": network(0)}, (X, Y))
    with pytest.raises(TypeError, match=r"'net'.*predict answered a int"):
        compare({"net": SimpleNamespace(predict=lambda _: 3)}, (X, Y))
    with pytest.raises(ValueError, match="histories holds 'plane'"):
        compare(METHODS, (X, Y), histories={"plane": None})
    with pytest.raises(ValueError, match="has no targets"):
        compare({"plain": METHODS["plain"]}, X)


def test_inputs_are_as_many_as_predictions_where_they_have_a_number():
    a, far = prediction_of(Y, 1, 1.0), {"far": {"a": Prediction.from_logits(random_logits(80, 2))}}
    fits = Comparison.from_predictions({"a": a}, ood=far, inputs=X, ood_inputs={"far": FAR})
    assert fits.inputs is X
    of_no_number = SimpleNamespace(__getitem__=X.__getitem__)
    assert Comparison.from_predictions({"a": a}, inputs=of_no_number).inputs is of_no_number
    with pytest.raises(ValueError, match=r"^inputs has 299 inputs, the predictions are of 300"):
        Comparison.from_predictions({"a": a}, inputs=X[:299])
    with pytest.raises(ValueError, match=r"ood_inputs\['far'\] has 79 inputs, the predictions are of 80"):
        Comparison.from_predictions({"a": a}, ood=far, ood_inputs={"far": list(FAR[:79])})
    with pytest.raises(ValueError, match=r"ood_inputs holds 'near', which is none of .*\['far'\]"):
        Comparison.from_predictions({"a": a}, ood=far, ood_inputs={"near": FAR})


def test_what_is_no_dict_is_refused_with_the_dict_to_pass():
    a, plain = prediction_of(Y, 1, 1.0), METHODS["plain"]
    with pytest.raises(TypeError, match=r"predictions is a list, expected a dict by name: pass \{'SNGP': prediction\}"):
        Comparison.from_predictions([a])
    with pytest.raises(TypeError, match=r"ood is a Prediction, .* pass \{'far': \{'SNGP': prediction\}\}"):
        Comparison.from_predictions({"a": a}, ood=a)
    with pytest.raises(TypeError, match=r"ood\['far'\] is a Prediction, .* pass \{'SNGP': prediction\}"):
        Comparison.from_predictions({"a": a}, ood={"far": a})
    with pytest.raises(TypeError, match=r"methods is a Deterministic, .* pass \{'SNGP': model\}"):
        compare(plain, (X, Y))
    with pytest.raises(TypeError, match=r"methods is a list, .* pass \{'SNGP': model\}"):
        compare([plain], (X, Y))
    with pytest.raises(TypeError, match=r"ood is a Tensor, .* pass \{'far': inputs\}"):
        compare({"plain": plain}, (X, Y), ood=FAR)


def test_errors_are_ranked_by_one_score_and_the_unknown_detected_by_another():
    data, far = prediction_of(Y, 0, 3.0), Prediction.from_logits(random_logits(200, 1) - 6)
    given = {"a": data}, {"far": {"a": far}}
    default = Comparison.from_predictions(given[0], ood=given[1])
    assert (default.score, default.ood_score) == ("confidence", "ood_score")
    assert default.to_dict()["ood_score"] == "ood_score"
    assert default.figures["a"]["auroc.far"] == pytest.approx(auroc(data.ood_score, far.ood_score))
    by_entropy = Comparison.from_predictions(given[0], ood=given[1], ood_score="predictive_entropy")
    assert by_entropy.figures["a"]["aurc"] == default.figures["a"]["aurc"] == pytest.approx(aurc(data))
    expected = auroc(data.predictive_entropy, far.predictive_entropy)
    assert by_entropy.figures["a"]["auroc.far"] == pytest.approx(expected)
    with pytest.raises(UnavailableError, match="ood_score='mutual_information' is not there for 'a'"):
        Comparison.from_predictions(given[0], ood=given[1], ood_score="mutual_information")
