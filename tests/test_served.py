import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import hesitant
from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout, Prediction
from hesitant.evaluation.temperature import calibrate
from hesitant.methods.batches import Batch
from hesitant.methods.served import digests
from hesitant.nn.models import MLP

pytestmark = pytest.mark.filterwarnings("ignore::hesitant.evaluation.temperature.CalibrationWarning")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(100, 4, generator=generator(1))
Y = torch.arange(100) % 3
DATA = TensorDataset(X, Y)
FIRST = Subset(DATA, range(60))  # calibrated on; the others are new


def mlp(seed: int = 0) -> nn.Module:
    return MLP(4, 3, hidden=(8,), dropout=0.2, generator=generator(seed))


def sngp(seed: int = 0) -> SNGP:
    method = SNGP(mlp(seed), num_inducing=16, kernel_scale=1.0, generator=generator(seed))
    method.fit_covariance(X)
    return method


METHODS: dict[str, Callable[[], Any]] = {
    "Deterministic": lambda: Deterministic(mlp()),
    "MCDropout": lambda: MCDropout(mlp(), 3),
    "SNGP": sngp,
    "DeepEnsemble": lambda: DeepEnsemble([mlp(0), mlp(1)]),
    "several kinds": lambda: DeepEnsemble([MCDropout(mlp(0), 3), sngp(1), DeepEnsemble([mlp(2)])]),
}
each_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


def served(prediction: Prediction) -> Tensor:
    assert prediction.served is not None
    return prediction.served


# ---------------------------------------------------------------- calibrate


@each_method
def test_the_inputs_of_the_temperature_are_marked_and_no_others(make: Callable[[], Any]) -> None:
    method = make()
    assert method.predict(X).served is None
    calibrate(method, FIRST, batch_size=16)
    assert served(method.predict(X, batch_size=7)).tolist() == [True] * 60 + [False] * 40
    assert not served(method.predict(X[60:])).any()


@pytest.mark.parametrize("posterior", ["mean_field", "monte_carlo"])
def test_every_posterior_marks_them(posterior: Any) -> None:
    method = sngp()
    calibrate(method, FIRST)
    assert int(served(method.predict(X, posterior=posterior)).sum()) == 60


def test_order_and_form_of_the_data_change_nothing() -> None:
    method = Deterministic(mlp())
    calibrate(method, DataLoader(FIRST, batch_size=9, shuffle=True, generator=generator()))
    shuffled = method.predict(DataLoader(DATA, batch_size=11, shuffle=True, generator=generator(2)))
    assert int(served(shuffled).sum()) == 60
    assert shuffled.targets is not None
    places = torch.tensor([int((row == X).all(1).nonzero()) for row in order_of(2)])
    assert torch.equal(served(shuffled), places < 60)
    assert served(method.predict(Subset(DATA, [3, 70, 59, 60]))).tolist() == [True, False, True, False]
    assert served(method.predict(X[::10])).tolist() == [True] * 6 + [False] * 4


def order_of(seed: int) -> Tensor:
    return torch.cat([x for x, _ in DataLoader(DATA, batch_size=11, shuffle=True, generator=generator(seed))])


def test_another_dtype_is_another_input() -> None:
    method = Deterministic(mlp().double())
    calibrate(method, (X.double(), Y))
    assert served(method.predict(X.double())).all()
    assert not served(method.predict(X.double() + 1e-12)).any()
    method.float()
    assert not served(method.predict(X)).any()


def test_a_copy_remembers_and_a_state_dict_does_not() -> None:
    method = Deterministic(mlp())
    calibrate(method, FIRST)
    assert int(served(copy.deepcopy(method).predict(X)).sum()) == 60
    fresh = Deterministic(mlp())
    fresh.load_state_dict(method.state_dict())
    assert fresh.temperature == method.temperature
    assert fresh.predict(X).served is None


def test_a_temperature_set_by_hand_belongs_to_no_data() -> None:
    method = Deterministic(mlp())
    calibrate(method, FIRST)
    method.temperature = 2.0
    assert method.predict(X).served is None
    calibrate(method, FIRST)
    calibrate(method, Subset(DATA, range(50, 100)))
    assert served(method.predict(X)).tolist() == [False] * 50 + [True] * 50


def test_the_inputs_of_a_factor_are_marked_as_long_as_it_stays() -> None:
    method = sngp()
    calibrate(method, FIRST)
    calibrate(method, Subset(DATA, range(60, 80)), mean_field_factors=())
    assert served(method.predict(X)).tolist() == [True] * 80 + [False] * 20
    method.temperature = 1.0
    assert served(method.predict(X)).tolist() == [True] * 60 + [False] * 40
    method.forget_calibration()
    assert method.predict(X).served is None


def test_an_ensemble_marks_what_a_member_was_chosen_on() -> None:
    member = Deterministic(mlp(1))
    calibrate(member, FIRST)
    ensemble = DeepEnsemble([Deterministic(mlp()), member])
    assert int(served(ensemble.predict(X)).sum()) == 60


class Named(Dataset[Any]):
    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {"x": X[index], "shift": X[index, :1], "labels": Y[index]}
        return {name: item[name] for name in self.names}


class TakesNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = mlp()

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.network(x + shift)


def test_dicts_are_told_by_their_names_and_not_by_their_order() -> None:
    method = Deterministic(TakesNames())
    calibrate(method, Subset(Named(["x", "shift", "labels"]), range(60)))
    assert int(served(method.predict(Named(["labels", "shift", "x"]))).sum()) == 60
    assert int(served(method.predict({"x": X, "shift": X[:, :1]})).sum()) == 60
    assert not served(method.predict({"x": X, "shift": X[:, :1] + 1})).any()


# ---------------------------------------------------------------- fit


def fit(model: nn.Module, **options: Any) -> None:
    options = {"validation_data": FIRST, "patience": 2, **options}
    hesitant.fit(model, (X[60:], Y[60:]), epochs=2, batch_size=20, device="cpu", progress=False, **options)


@pytest.mark.parametrize("name", ["Deterministic", "MCDropout", "SNGP"])
def test_the_inputs_of_early_stopping_are_marked(name: str) -> None:
    method = METHODS[name]()
    fit(method)
    assert served(method.predict(X)).tolist() == [True] * 60 + [False] * 40


@pytest.mark.parametrize("vectorize", [True, False])
def test_those_of_members_too(vectorize: bool) -> None:
    ensemble = DeepEnsemble([Deterministic(mlp(seed)) for seed in range(2)], vectorize=vectorize)
    fit(ensemble)
    assert served(ensemble.predict(X)).tolist() == [True] * 60 + [False] * 40
    assert int(served(ensemble.members[0].predict(X)).sum()) == 60  # type: ignore[operator]


def test_an_ensemble_of_plain_models_remembers_for_them() -> None:
    ensemble = METHODS["DeepEnsemble"]()
    fit(ensemble)
    assert served(ensemble.predict(X)).tolist() == [True] * 60 + [False] * 40


def test_validation_that_stops_nothing_chooses_nothing() -> None:
    method = Deterministic(mlp())
    fit(method, patience=None)
    assert method.predict(X).served is None


def test_training_again_forgets_the_temperature_and_not_the_stopping() -> None:
    method = Deterministic(mlp())
    fit(method)
    calibrate(method, (X[60:], Y[60:]))
    assert served(method.predict(X)).all()
    fit(method, validation_data=None, patience=None)
    assert int(served(method.predict(X)).sum()) == 60


# ---------------------------------------------------------------- digests


def of(*args: Tensor, **kwargs: Any) -> Tensor:
    return digests(Batch(args, kwargs))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_inputs_that_differ_have_other_digests(dtype: torch.dtype) -> None:
    rows = torch.arange(2**12).unsqueeze(1).bitwise_right_shift(torch.arange(12)).bitwise_and(1).to(dtype)  # all alike
    numbers = of(rows)
    assert len(numbers.unique()) == 2**12
    assert torch.equal(of(rows.flip(0)), numbers.flip(0))
    assert torch.equal(of(rows.T.contiguous().T[5:9]), numbers[5:9])


def test_a_million_inputs_have_as_many_digests() -> None:
    rows = torch.arange(10**6, dtype=torch.float32).unsqueeze(1)
    assert len(of(rows).unique()) == 10**6
    assert len(of(torch.cat([rows, rows.flip(0)], 1)).unique()) == 10**6


def test_arguments_are_told_apart() -> None:
    a, b = X[:, :2], X[:, 2:]
    assert not (of(a, b) == of(b, a)).any()
    assert not (of(a=a, b=b) == of(a=b, b=a)).any()
    assert torch.equal(of(a=a, b=b, flag=True), of(b=b, a=a))
    assert torch.equal(of(a=[a, b]), of(a=[a, b]))
    assert not (of(a=[a, b]) == of(a=[b, a])).any()


def test_padding_on_the_right_changes_nothing() -> None:
    ids = torch.randint(1, 50, (6, 7), generator=generator())
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 7, 2]).unsqueeze(1)
    short = ids * mask
    assert torch.equal(of(torch.nn.functional.pad(short, (0, 5))), of(short))
    kept = of(input_ids=short, attention_mask=mask.long())
    for filler in (0, 1, 49):
        padded = torch.nn.functional.pad(ids.where(mask, filler), (0, 5), value=filler)
        long_mask = torch.nn.functional.pad(mask.long(), (0, 5))
        assert torch.equal(of(input_ids=padded, attention_mask=long_mask), kept)


class Graph(nn.Module):
    """Takes a table for all inputs beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.linear(x) + 0 * adjacency.sum()


def test_a_table_that_comes_with_every_batch_is_no_input() -> None:
    def given(labels: bool) -> list[dict[str, Tensor]]:
        parts = [slice(start, start + 20) for start in range(0, 100, 20)]
        rows = [{"adjacency": torch.eye(7), "x": X[part]} for part in parts]
        return [{**row, "labels": Y[part]} for row, part in zip(rows, parts, strict=True)] if labels else rows

    method = Deterministic(Graph())
    calibrate(method, DataLoader(given(True)[:3], batch_size=None))  # type: ignore[arg-type]
    assert served(method.predict(given(True))).tolist() == [True] * 60 + [False] * 40
    assert served(method.predict(given(False))).tolist() == [True] * 60 + [False] * 40


def test_what_cannot_be_told_by_rows_is_left_out() -> None:
    assert torch.equal(of(X, table=torch.ones(3), number=torch.tensor(2.0)), of(X))
    with pytest.raises(TypeError, match="no tensor"):
        of(flag=True)


# ---------------------------------------------------------------- Prediction


def test_it_travels_with_the_inputs() -> None:
    marks = torch.arange(6) % 2 == 0
    prediction = Prediction(torch.full((6, 2), 0.5), served=marks)
    assert torch.equal(served(prediction), marks)
    assert served(prediction[1:4]).tolist() == [False, True, False]
    assert served(prediction[marks]).all()
    assert served(prediction.with_targets([0] * 6)).equal(marks)
    assert served(prediction.to("cpu")).equal(marks)
    assert prediction.with_served(None).served is None


def test_joined_with_a_prediction_that_has_none_it_has_none_of_these() -> None:
    with_marks = Prediction(torch.full((2, 2), 0.5), served=[True, False])
    without = Prediction(torch.full((3, 2), 0.5))
    assert served(Prediction.cat([without, with_marks])).tolist() == [False, False, False, True, False]
    assert served(Prediction.cat([with_marks, without])).tolist() == [True, False, False, False, False]
    assert Prediction.cat([without, without]).served is None


def test_tables_name_it_only_where_it_is_known() -> None:
    pytest.importorskip("pandas")
    prediction = Prediction(torch.full((2, 2), 0.5))
    assert "served" not in prediction.available
    assert "served" not in prediction.to_pandas()
    marked = prediction.with_served([True, False])
    assert marked.numpy()["served"].tolist() == [True, False]
    assert marked.to_pandas()["served"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        pytest.param([1, 0], TypeError, "expected booleans", id="integers"),
        pytest.param([True], ValueError, r"shape \(1,\)", id="length"),
        pytest.param([[True], [False]], ValueError, r"shape \(2, 1\)", id="shape"),
    ],
)
def test_marks_that_are_none_are_named(value: Any, error: type[Exception], message: str) -> None:
    for make in (lambda: Prediction(torch.full((2, 2), 0.5), served=value), lambda: PAIR.with_served(value)):
        with pytest.raises(error, match=message):
            make()


PAIR = Prediction(torch.full((2, 2), 0.5))
