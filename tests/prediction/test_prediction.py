import copy
import dataclasses
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from hesitant.prediction import Prediction, UnavailableError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def random_samples(
    num_samples: int, num_inputs: int, num_classes: int, *, scale: float = 3.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(num_samples * 1000 + num_inputs * 10 + num_classes)
    logits = scale * torch.randn(num_samples, num_inputs, num_classes, generator=generator, dtype=torch.float64)
    return torch.softmax(logits, dim=-1).to(dtype)


def random_targets(num_inputs: int, num_classes: int) -> Tensor:
    return torch.randint(num_classes, (num_inputs,), generator=torch.Generator().manual_seed(num_inputs))


def full_prediction(num_inputs: int = 7, num_classes: int = 3) -> Prediction:
    samples = random_samples(5, num_inputs, num_classes)
    logits = samples.mean(dim=0).log()
    return Prediction.from_samples(
        samples, targets=random_targets(num_inputs, num_classes), logits=logits, logit_variance=logits.square()
    )


# -- what it answers


def test_labels_and_confidence_are_those_of_the_largest_probability():
    prediction = Prediction([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])
    assert prediction.labels.tolist() == [1, 0]
    assert prediction.confidence.tolist() == pytest.approx([0.5, 0.4])


@pytest.mark.parametrize("dtype", DTYPES)
def test_entropies_and_spread_agree_with_the_plain_formulas(dtype):
    def entropy(p: np.ndarray) -> np.ndarray:
        return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)

    for num_samples, num_classes in ((1, 2), (2, 2), (10, 3), (4, 1000)):
        samples = random_samples(num_samples, 6, num_classes, dtype=dtype)
        prediction = Prediction.from_samples(samples)
        exact = (samples.double() / samples.double().sum(dim=-1, keepdim=True)).numpy()
        mean = exact.mean(axis=0)
        tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-6}
        np.testing.assert_allclose(prediction.probs, mean, **tolerance)
        np.testing.assert_allclose(prediction.predictive_entropy, entropy(mean), **tolerance)
        np.testing.assert_allclose(prediction.expected_entropy, entropy(exact).mean(axis=0), **tolerance)
        np.testing.assert_allclose(prediction.class_std, exact.std(axis=0), **tolerance)
        np.testing.assert_allclose(prediction.predictive_variance, (mean * (1 - mean)).sum(axis=-1), **tolerance)
        np.testing.assert_allclose(prediction.log_probs.exp(), mean, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_total_is_aleatoric_plus_epistemic_and_none_is_negative(dtype):
    for scale in (0.0, 1e-3, 1.0, 10.0, 1000.0):
        prediction = Prediction.from_samples(random_samples(9, 200, 5, scale=scale, dtype=dtype))
        total, aleatoric, epistemic = (
            prediction.predictive_entropy,
            prediction.expected_entropy,
            prediction.mutual_information,
        )
        for part in (total, aleatoric, epistemic):
            assert bool((part >= 0).all())
            assert bool((part <= math.log(5) + 1e-2).all())
        torch.testing.assert_close(aleatoric + epistemic, total, rtol=0, atol=2 * torch.finfo(total.dtype).eps)
        for part in (prediction[3:50], prediction[torch.arange(200).flip(0)]):
            assert bool((part.mutual_information >= 0).all())


def test_two_members_in_full_disagreement_differ_by_log_two():
    prediction = Prediction.from_samples(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert prediction.predictive_entropy.item() == pytest.approx(math.log(2))
    assert prediction.mutual_information.item() == pytest.approx(math.log(2))
    assert prediction.expected_entropy.item() == 0
    assert prediction.class_std.tolist() == [[0.5, 0.5]]


def test_members_that_agree_leave_nothing_epistemic():
    one = random_samples(1, 50, 4, dtype=torch.float32)
    prediction = Prediction.from_samples(one.expand(8, -1, -1))
    assert prediction.mutual_information.max().item() <= 1e-6
    assert prediction.class_std.max().item() <= 1e-6


def test_the_order_of_the_samples_does_not_matter():
    samples = random_samples(6, 20, 3)
    first, second = Prediction.from_samples(samples), Prediction.from_samples(samples.flip(0))
    torch.testing.assert_close(first.expected_entropy, second.expected_entropy)
    torch.testing.assert_close(first.class_std, second.class_std)


def test_certain_rows_have_no_uncertainty_and_uniform_rows_all_of_it():
    certain, uniform = Prediction(torch.eye(4)), Prediction(torch.full((1, 4), 0.25))
    assert certain.predictive_entropy.tolist() == [0.0] * 4
    assert certain.predictive_variance.tolist() == [0.0] * 4
    assert certain.log_probs.diagonal().tolist() == [0.0] * 4
    assert uniform.predictive_entropy.item() == pytest.approx(math.log(4))
    assert uniform.predictive_variance.item() == pytest.approx(0.75)


def test_from_samples_in_chunks_answers_as_the_whole(monkeypatch):
    samples = random_samples(5, 23, 3)
    whole = Prediction.from_samples(samples).numpy()
    monkeypatch.setattr("hesitant.prediction.mixture._CHUNK_NUMBERS", 40)
    chunked = Prediction.from_samples(samples).numpy()
    for name, values in whole.items():
        np.testing.assert_allclose(chunked[name], values, rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_may_be_given_as_log_probabilities(dtype):
    samples = random_samples(5, 11, 3)
    plain, logs = Prediction.from_samples(samples), Prediction.from_samples(samples.log().to(dtype), log=True)
    tolerance = (
        {"rtol": 1e-9, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 0, "atol": 20 * torch.finfo(dtype).eps}
    )
    for name, values in plain.numpy().items():
        np.testing.assert_allclose(logs.numpy()[name], values, **tolerance, err_msg=name)


# -- saturation


@pytest.mark.parametrize("make", ["from_logits", "from_probs", "from_samples", "from_log_samples", "with_log_probs"])
def test_saturated_confidences_stay_in_order(make):
    gaps = torch.linspace(5, 80, 40)
    logits = torch.stack([gaps, torch.zeros(40)], dim=-1)
    probs, log_probs = torch.softmax(logits, dim=-1), torch.log_softmax(logits, dim=-1)
    prediction = {
        "from_logits": lambda: Prediction.from_logits(logits),
        "from_probs": lambda: Prediction(probs),
        "from_samples": lambda: Prediction.from_samples(probs.expand(3, -1, -1)),
        "from_log_samples": lambda: Prediction.from_samples(log_probs.expand(3, -1, -1), log=True),
        "with_log_probs": lambda: Prediction(probs, log_probs=log_probs),
    }[make]()
    assert prediction.confidence[-1].item() == 1
    exact = -torch.nn.functional.softplus(-gaps.double())
    torch.testing.assert_close(prediction.log_probs[:, 0].double(), exact, rtol=1e-4, atol=0)
    assert bool((prediction.log_probs[:, 0].diff() > 0).all())
    assert bool((prediction.predictive_entropy.diff() < 0).all())
    assert bool((prediction.predictive_variance.diff() < 0).all())


def test_log_probs_are_the_logarithm_of_the_probabilities():
    probs = random_samples(1, 300, 4, scale=8)[0]
    torch.testing.assert_close(Prediction(probs).log_probs, probs.log(), rtol=1e-9, atol=1e-14)
    rounded = torch.tensor([[0.6667, 0.33335], [0.9999, 0.00015]])  # sums to 1.00005: the rest is no complement
    torch.testing.assert_close(Prediction(rounded).log_probs, rounded.log())


# -- from logits


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_logits_is_the_softmax(dtype):
    logits = (4 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
    prediction = Prediction.from_logits(logits)
    wide = logits if dtype == torch.float64 else logits.float()
    assert prediction.probs.dtype == wide.dtype
    assert torch.equal(prediction.probs, torch.softmax(wide, dim=-1))
    assert torch.equal(prediction.logits, wide)


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_a_single_logit_is_binary(shape):
    z = 20 * torch.randn(8, generator=torch.Generator().manual_seed(1))
    prediction = Prediction.from_logits(z.reshape(shape), logit_variance=torch.ones(shape))
    torch.testing.assert_close(prediction.probs, torch.stack([torch.sigmoid(-z), torch.sigmoid(z)], dim=-1))
    torch.testing.assert_close(torch.softmax(prediction.logits, dim=-1), prediction.probs)
    assert prediction.logit_variance.tolist() == [[0.0, 1.0]] * 8


def test_mean_logits_are_answered_where_they_differ_from_those_of_the_probabilities():
    mean = torch.tensor([[2.0, -2.0]])
    prediction = Prediction.from_logits(mean / 2, mean_logits=mean, logit_variance=torch.full((1, 2), 7.6))
    assert torch.equal(prediction.logits, mean)
    assert torch.equal(prediction.probs, torch.softmax(mean / 2, dim=-1))
    assert prediction.logit_variance.tolist() == [[pytest.approx(7.6)] * 2]


# -- what is not available says why


def test_one_distribution_cannot_be_split():
    prediction = Prediction.from_logits(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    for name in ("expected_entropy", "mutual_information", "class_std"):
        with pytest.raises(UnavailableError, match=f"{name} is not available: .*one distribution cannot be split"):
            getattr(prediction, name)
        assert name not in prediction.available


def test_the_reason_of_the_method_is_told():
    reason = "mean field gives one distribution: predict with posterior='monte_carlo'"
    prediction = Prediction([[0.5, 0.5]], split_unavailable=reason)
    for made in (prediction, prediction[:1], prediction.to("cpu"), Prediction.cat([prediction, prediction])):
        with pytest.raises(UnavailableError, match=r"mutual_information is not available: mean field.*monte_carlo"):
            _ = made.mutual_information


def test_logits_that_there_are_not_say_so():
    prediction = Prediction([[0.5, 0.5]])
    with pytest.raises(UnavailableError, match=r"logits is not available: .*from_logits"):
        _ = prediction.logits
    with pytest.raises(UnavailableError, match=r"logit_variance is not available: .*SNGP"):
        _ = prediction.logit_variance
    assert prediction.targets is None


# -- a container


def assert_same(first: Prediction, second: Prediction) -> None:
    assert first.available == second.available
    for name, values in first.numpy().items():
        np.testing.assert_array_equal(values, second.numpy()[name], err_msg=name)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (2, [2]),
        (-1, [6]),
        (np.int64(3), [3]),
        (torch.tensor(4), [4]),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [6, 4, 2, 0]),
        (slice(5, 2), []),
        (torch.tensor([True, False, True, False, False, False, True]), [0, 2, 6]),
        (np.array([False] * 7), []),
        ([True] * 7, [0, 1, 2, 3, 4, 5, 6]),
        (torch.tensor([3, 3, -7]), [3, 3, 0]),
        (torch.tensor([1, 0], dtype=torch.int16), [1, 0]),
        ([5, 1], [5, 1]),
        ([], []),
    ],
)
def test_an_index_chooses_the_same_rows_of_every_field(index, rows):
    prediction = full_prediction()
    chosen = prediction[index]
    assert len(chosen) == len(rows)
    for name, values in prediction.numpy().items():
        np.testing.assert_allclose(chosen.numpy()[name], values[rows], rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (7, "index 7 is out of range for a Prediction of 7 inputs"),
        ([0, -8], "index -8 is out of range"),
        (torch.ones(6, dtype=torch.bool), r"mask has shape \(6,\), expected \(7,\)"),
        (True, "mask"),
        ((0, 1), "indexed by its inputs alone"),
        (torch.zeros(2, 2, dtype=torch.long), "expected 1-D integers"),
        (torch.zeros(7, dtype=torch.uint8), "uint8.*boolean mask"),
        ([0.5], "expected 1-D integers"),
    ],
)
def test_a_wrong_index_is_refused(index, message):
    with pytest.raises(IndexError, match=message):
        full_prediction()[index]


def test_iterating_gives_each_input():
    prediction = full_prediction()
    parts = list(prediction)
    assert [len(part) for part in parts] == [1] * 7
    assert_same(Prediction.cat(parts), prediction)


def test_cat_undoes_slicing():
    prediction = full_prediction()
    assert_same(Prediction.cat(prediction[i : i + 3] for i in range(0, 7, 3)), prediction)


def test_an_empty_prediction_is_a_prediction():
    empty = full_prediction()[:0]
    assert len(empty) == 0
    assert all(len(values) == 0 for values in empty.numpy().values())
    assert repr(empty) == "Prediction(0 inputs, 3 classes)"
    assert len(empty.to_pandas()) == 0
    assert len(Prediction.cat([empty, full_prediction()])) == 7
    for made in (
        Prediction(torch.zeros(0, 2), targets=[]),
        Prediction.from_samples(torch.zeros(4, 0, 2)),
        Prediction.from_logits(torch.zeros(0)),
    ):
        assert made.probs.shape == (0, 2)


def test_cat_refuses_what_does_not_go_together():
    plain = Prediction([[0.5, 0.5]])
    with pytest.raises(ValueError, match="predictions is empty"):
        Prediction.cat([])
    with pytest.raises(ValueError, match=r"predictions\[1\] has 3 classes on cpu, predictions\[0\] has 2 classes"):
        Prediction.cat([plain, Prediction([[0.5, 0.5, 0.0]])])
    others = {
        "targets": Prediction([[0.5, 0.5]], targets=[0]),
        "logits": Prediction.from_logits(torch.zeros(1, 2)),
        "expected_entropy": Prediction.from_samples(torch.full((2, 1, 2), 0.5)),
    }
    for name, other in others.items():
        with pytest.raises(ValueError, match=rf"predictions\[1\] has {name}, predictions\[0\] does not"):
            Prediction.cat([plain, other])
        with pytest.raises(ValueError, match=rf"predictions\[0\] has {name}, predictions\[1\] does not"):
            Prediction.cat([other, plain])


def test_with_targets_adds_or_replaces_them():
    prediction = Prediction([[0.5, 0.5], [0.1, 0.9]])
    assert prediction.with_targets([1, 0]).with_targets(np.array([0, 1])).targets.tolist() == [0, 1]
    assert prediction.targets is None
    with pytest.raises(ValueError, match="targets has shape"):
        prediction.with_targets([1])


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "meta"])
def test_it_moves_to_a_device(device):
    prediction = full_prediction()
    moved = prediction.to(device)
    tensors = [moved.probs, moved.log_probs, moved.targets, moved.logits, moved.logit_variance, moved.class_std]
    assert {tensor.device.type for tensor in tensors} == {torch.device(device).type}
    assert prediction.probs.device.type == "cpu"


def test_numpy_holds_copies_of_all_that_is_available():
    prediction = full_prediction()
    arrays = prediction.numpy()
    assert tuple(arrays) == prediction.available
    assert {"probs", "mutual_information", "class_std", "logits", "logit_variance", "targets"} <= set(arrays)
    arrays["probs"][:] = 0
    assert prediction.probs.sum().item() == pytest.approx(7)
    assert "targets" not in Prediction([[0.5, 0.5]]).numpy()


def test_to_pandas_has_a_row_an_input():
    table = full_prediction().to_pandas()
    assert len(table) == 7
    assert list(table.columns[:2]) == ["label", "confidence"]
    expected = {"predictive_entropy", "expected_entropy", "mutual_information", "predictive_variance", "target"}
    assert expected | {"probs_0", "probs_2", "class_std_1", "logits_0", "logit_variance_2"} <= set(table.columns)
    np.testing.assert_allclose(table["probs_1"], full_prediction().probs[:, 1])
    np.testing.assert_allclose(table[["probs_0", "probs_1", "probs_2"]].max(axis=1), table["confidence"])
    assert "target" not in Prediction([[0.5, 0.5]]).to_pandas().columns


def test_to_pandas_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        full_prediction().to_pandas()


def test_the_repr_is_short():
    prediction = Prediction([[0.9, 0.1], [0.7, 0.3]], targets=[0, 1])
    assert repr(prediction) == "Prediction(2 inputs, 2 classes, accuracy 0.500, mean confidence 0.800)"
    assert repr(Prediction([[0.9, 0.1]])) == "Prediction(1 input, 2 classes, mean confidence 0.900)"


# -- immutable


def test_no_attribute_can_be_set():
    prediction = full_prediction()
    for name in ("probs", "targets", "_logits"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(prediction, name, None)
    with pytest.raises((AttributeError, TypeError)):
        prediction.labels = None


def test_equality_is_identity_and_copies_work():
    prediction = full_prediction()
    for made in (copy.deepcopy(prediction), pickle.loads(pickle.dumps(prediction)), prediction[:]):
        assert made != prediction
        assert_same(made, prediction)
    assert len({prediction, prediction}) == 1


def test_gradients_are_cut():
    logits = torch.zeros(2, 2, requires_grad=True)
    assert not Prediction.from_logits(logits).probs.requires_grad
    assert not Prediction(torch.softmax(logits, dim=-1)).probs.requires_grad


# -- what goes in is checked


@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        (torch.full((3,), 0.5), ValueError, r"probs has shape \(3,\), expected \(B, C\)"),
        (torch.ones(3, 1), ValueError, r"torch\.stack\(\[1 - p, p\]"),
        (torch.full((2, 3, 2), 0.5), ValueError, "from_samples"),
        (torch.ones(2, 2, dtype=torch.long), TypeError, r"dtype torch\.int64, expected a floating"),
        (torch.tensor([[0.5, 0.5], [float("nan"), 0.5]]), ValueError, r"probs\[1, 0\] is nan"),
        (torch.tensor([[float("inf"), 0.5]]), ValueError, r"probs\[0, 0\] is inf"),
        (torch.tensor([[1.5, -0.5]]), ValueError, r"probs\[0, 0\] is 1\.5, expected a probability in \[0, 1\]"),
        (torch.tensor([[0.5, 0.5], [0.5, 0.6]]), ValueError, r"probs\[1\] sums to 1\.1, expected 1 within 0\.0001"),
        (torch.tensor([[0.5, 0.5001 + 1e-4]], dtype=torch.float64), ValueError, "sums to"),
        (torch.tensor([[0.5, 0.52]], dtype=torch.bfloat16), ValueError, "expected 1 within 0.016"),
        ("probabilities", TypeError, "probs is str, expected a tensor"),
    ],
)
def test_probs_that_are_no_distribution_are_refused(probs, error, message):
    with pytest.raises(error, match=message):
        Prediction(probs)


def test_probs_a_rounding_outside_are_taken_and_clamped():
    prediction = Prediction(torch.tensor([[1.0000001, -1e-8]]))
    assert prediction.probs.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_targets_of_any_integer_dtype_become_int64(dtype):
    targets = Prediction([[0.5, 0.5]] * 2, targets=torch.tensor([0, 1]).to(dtype)).targets
    assert targets.dtype == torch.int64
    assert targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (torch.tensor([0, 2]), ValueError, r"targets\[1\] is 2, expected a class index in \[0, 2\)"),
        (torch.tensor([-100, 0]), ValueError, r"targets\[0\] is -100"),
        (torch.tensor([0]), ValueError, r"targets has shape \(1,\), expected \(2,\)"),
        (torch.tensor([[0], [1]]), ValueError, r"targets has shape \(2, 1\), expected \(2,\)"),
        (torch.tensor([0.0, 1.0]), TypeError, r"targets has dtype torch\.float32, expected integers"),
        (torch.tensor([True, False]), TypeError, r"torch\.bool.*long"),
    ],
)
def test_targets_that_are_no_classes_are_refused(targets, error, message):
    with pytest.raises(error, match=message):
        Prediction([[0.5, 0.5]] * 2, targets=targets)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("logits", torch.zeros(2, 3), r"logits has shape \(2, 3\), expected \(2, 2\)"),
        ("logits", torch.tensor([[0.0, 0.0], [0.0, float("nan")]]), r"logits\[1, 1\] is nan"),
        ("logit_variance", torch.zeros(2), r"logit_variance has shape \(2,\), expected \(2, 2\)"),
        ("logit_variance", torch.full((2, 2), -0.1), r"logit_variance\[0, 0\] is -0\.1.*at least 0"),
        ("expected_entropy", torch.zeros(3), r"expected_entropy has shape \(3,\), expected \(2,\)"),
        ("expected_entropy", torch.tensor([0.0, 0.8]), r"expected_entropy\[1\] is 0\.8, above the predictive entropy"),
        ("class_std", torch.full((2, 2), -1.0), "class_std"),
        ("log_probs", torch.zeros(2, 2), r"log_probs\[0, 0\] is 0, expected the logarithm of the probability 0\.5"),
        ("log_probs", torch.full((2, 2), float("nan")), "log_probs.*nan"),
        ("log_probs", torch.zeros(2), "log_probs has shape"),
    ],
)
def test_fields_that_do_not_fit_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Prediction([[0.5, 0.5]] * 2, **{field: value})


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (torch.full((2, 2), 0.5), ValueError, r"samples has shape \(2, 2\), expected \(S, B, C\)"),
        (torch.zeros(0, 2, 2), ValueError, "S >= 1"),
        (torch.ones(2, 2, 1), ValueError, "C >= 2"),
        (torch.ones(2, 2, 2, dtype=torch.long), TypeError, "floating"),
        (torch.full((2, 1, 2), 0.6), ValueError, r"samples\[0, 0\] sums to 1\.2"),
        (torch.full((2, 1, 2), float("nan")), ValueError, "samples.*nan"),
    ],
)
def test_samples_that_are_no_distributions_are_refused(samples, error, message):
    with pytest.raises(error, match=message):
        Prediction.from_samples(samples)


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.zeros(2, 3, 4), ValueError, r"logits has shape \(2, 3, 4\), expected \(B, C\)"),
        (torch.zeros(2, 0), ValueError, "logits has shape"),
        (torch.zeros(2, 2, dtype=torch.int32), TypeError, "logits has dtype"),
        (torch.tensor([[0.0, float("nan")]]), ValueError, r"logits\[0, 1\] is nan"),
        (torch.tensor([float("inf")]), ValueError, r"logits\[0\] is inf"),
    ],
)
def test_logits_that_are_none_are_refused(logits, error, message):
    with pytest.raises(error, match=message):
        Prediction.from_logits(logits)


def test_only_torch_and_numpy_are_imported():
    code = (
        "import sys, hesitant.prediction, hesitant.evaluation;"
        "print([m for m in ('pandas', 'sklearn', 'torchmetrics', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
