import copy
import pickle
import sys
import threading

import pytest
import torch

from hesitant.nn import CovarianceError, LaplaceCovariance


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def products(num_batches, size=6, rows=4):
    for seed in range(num_batches):
        phi = torch.randn(rows, size, generator=seeded(seed), dtype=torch.float64)
        yield phi.T @ phi, rows


EYE = torch.eye(6, dtype=torch.float64)


def test_exact_sum():
    laplace, total = LaplaceCovariance(6, 0.5), 0.5 * EYE
    for product, count in products(5):
        laplace.add(product, count)
        total = total + product
    torch.testing.assert_close(laplace.precision, total, rtol=1e-14, atol=0)


def test_momentum_one_is_the_exact_sum():
    exact, running = LaplaceCovariance(6, 0.5), LaplaceCovariance(6, 0.5, momentum=1.0)
    for product, count in products(5):
        exact.add(product, count)
        running.add(product, count)
    assert torch.equal(exact.precision, running.precision)


@pytest.mark.parametrize("momentum", [0.3, 0.9])
def test_momentum_keeps_a_window_whose_ridge_stays(momentum):
    laplace = LaplaceCovariance(6, 0.5, momentum=momentum)
    batches = list(products(7))
    for product, count in batches:
        laplace.add(product, count)
    window = sum(momentum ** (6 - i) * product for i, (product, _) in enumerate(batches))
    torch.testing.assert_close(laplace.precision, 0.5 * EYE + window, rtol=1e-12, atol=1e-12)


def test_num_data_is_what_the_average_stands_for():
    laplace = LaplaceCovariance(6, 0.5, momentum=0.9, num_data=1000)
    torch.testing.assert_close(laplace.precision, 0.5 * EYE)
    batches = list(products(7))
    for i, (product, count) in enumerate(batches):
        laplace.add(product, count)
        weights = [0.9 ** (i - k) for k in range(i + 1)]
        average = sum(w * p for w, (p, _) in zip(weights, batches, strict=False)) / (count * sum(weights))
        # Bias-corrected: the first batch alone stands for all the data.
        torch.testing.assert_close(laplace.precision, 0.5 * EYE + 1000 * average, rtol=1e-12, atol=1e-12)


def test_ridge_decay_is_the_references_formula():
    laplace, reference = LaplaceCovariance(6, 0.5, momentum=0.9, ridge_decay=True), 0.5 * EYE
    for product, count in products(7):
        laplace.add(product, count)
        reference = 0.9 * reference + 0.1 * product / count
    torch.testing.assert_close(laplace.precision, reference, rtol=1e-12, atol=1e-12)


def test_the_ridge_holds_for_ten_thousand_updates():
    laplace = LaplaceCovariance(3, 0.5, momentum=0.9)
    phi = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    for _ in range(10_000):
        laplace.add(phi.T @ phi, 1)
    assert torch.linalg.eigvalsh(laplace.precision)[0] >= 0.5 * (1 - 1e-9)


def test_remove_undoes_add():
    laplace = LaplaceCovariance(6, 0.5)
    batches = list(products(3))
    for product, count in batches[:2]:
        laplace.add(product, count)
    before = laplace.precision.clone()
    laplace.add(*batches[2])
    laplace.remove(*batches[2])
    torch.testing.assert_close(laplace.precision, before, rtol=1e-13, atol=1e-13)


def test_all_data_taken_out_leaves_the_prior_whatever_the_rounding():
    laplace = LaplaceCovariance(6, 1e-12)
    batches = list(products(3))
    for product, count in batches:
        laplace.add(product, count)
    for product, count in batches:
        laplace.remove(product, count)
    assert torch.equal(laplace.precision, 1e-12 * EYE)
    x = torch.ones(1, 6, dtype=torch.float64)
    torch.testing.assert_close(laplace.factorize(torch.float64).variance(x), torch.tensor([6.0], dtype=torch.float64))


def test_states():
    laplace = LaplaceCovariance(6)
    product, count = next(products(1))
    laplace.mark_stale()
    assert laplace.state == "none"  # nothing was fitted that could have aged
    with pytest.raises(CovarianceError, match=r"posterior: the covariance is not fitted.*Call fit_covariance\(data\)"):
        laplace.require_fitted("posterior")
    laplace.add(product, count)
    assert laplace.state == "fitted"
    laplace.mark_stale()
    assert laplace.state == "stale"
    with pytest.raises(CovarianceError, match=r"posterior: the covariance is stale: the weights have moved"):
        laplace.require_fitted("posterior")
    with pytest.raises(CovarianceError, match=r"update: the weights have moved.*Call reset_covariance\(\) first"):
        laplace.add(product, count)
    with pytest.raises(CovarianceError, match=r"downdate: the covariance is stale"):
        laplace.remove(product, count)
    laplace.reset()
    assert laplace.state == "none"
    torch.testing.assert_close(laplace.precision, EYE)


def test_what_cannot_be_taken_out():
    product, count = next(products(1))
    laplace = LaplaceCovariance(6)
    with pytest.raises(CovarianceError, match="downdate: the covariance is not fitted"):
        laplace.remove(product, count)
    laplace.add(product, count)
    with pytest.raises(CovarianceError, match=r"downdate: 5 inputs cannot be taken out of the 4 that were added"):
        laplace.remove(product, 5)
    laplace.remove(100 * product, 3)  # as many inputs, but others than were added
    with pytest.raises(CovarianceError, match="negative eigenvalue"):
        laplace.factorize(torch.float64)
    running = LaplaceCovariance(6, momentum=0.9)
    running.add(product, count)
    with pytest.raises(CovarianceError, match=r"downdate: with momentum=0.9 .* Make the layer with momentum=None"):
        running.remove(product, count)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge_penalty": 0.0}, r"ridge_penalty=0.0 must be a positive number"),
        ({"ridge_penalty": -1.0}, r"ridge_penalty=-1.0 must be"),
        ({"ridge_penalty": float("nan")}, r"ridge_penalty=nan must be"),
        ({"ridge_penalty": float("inf")}, r"ridge_penalty=inf must be"),
        ({"momentum": -1.0}, r"momentum=-1.0 must be None \(an exact second pass\) or lie in \(0, 1\]"),
        ({"momentum": 1.5}, r"momentum=1.5 must be None"),
        ({"ridge_decay": True}, r"ridge_decay=True needs a momentum below 1, and got momentum=None"),
        ({"ridge_decay": True, "momentum": 1.0}, r"got momentum=1.0"),
        ({"num_data": 10}, r"num_data=10 scales the running average"),
        ({"num_data": 0, "momentum": 0.9}, r"num_data=0 .* must be at least 1"),
        ({"num_data": 10, "momentum": 0.9, "ridge_decay": True}, r"num_data=10 .* without"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LaplaceCovariance(4, **options)


def test_the_factor_is_kept_until_the_precision_changes():
    laplace = LaplaceCovariance(6)
    batches = list(products(2))
    laplace.add(*batches[0])
    columns = laplace.factorize(torch.float64).columns
    assert laplace.factorize(torch.float64).columns is columns
    laplace.add(*batches[1])
    assert laplace.factorize(torch.float64).columns is not columns


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stays_exact_whatever_the_module_is_cast_to(dtype):
    laplace = LaplaceCovariance(6, 1e-3)
    laplace.add(*next(products(1)))
    laplace.factorize(torch.float64)
    before = laplace.precision.clone()
    laplace.to(dtype)
    assert torch.equal(laplace.precision, before)
    assert laplace.data_precision.dtype == torch.float64
    assert laplace.factorize(torch.float32).columns.dtype == torch.float32
    laplace.double()
    assert torch.equal(laplace.precision, before)
    assert laplace.factorize(torch.float64).columns.dtype == torch.float64


def test_state_dict_and_deepcopy_carry_state_and_sums():
    laplace = LaplaceCovariance(6, 0.5, momentum=0.9, ridge_decay=True)
    for product, count in products(3):
        laplace.add(product, count)
    other = LaplaceCovariance(6, 0.5, momentum=0.9, ridge_decay=True)
    other.load_state_dict(laplace.state_dict())
    for same in (other, copy.deepcopy(laplace)):
        assert same.state == "fitted"
        assert torch.equal(same.precision, laplace.precision)
    laplace.mark_stale()
    other.load_state_dict(laplace.state_dict())
    assert other.state == "stale"


def test_weights_without_a_covariance_make_it_stale():
    laplace = LaplaceCovariance(6)
    laplace.add(*next(products(1)))
    laplace.load_state_dict({}, strict=False)
    assert laplace.state == "stale"


def test_a_layer_made_on_the_meta_device_materialises():
    laplace = LaplaceCovariance(6, device="meta").to_empty(device="cpu")
    assert laplace.data_precision.dtype == torch.float64
    fitted = LaplaceCovariance(6)
    fitted.add(*next(products(1)))
    laplace.load_state_dict(fitted.state_dict())
    assert torch.equal(laplace.precision, fitted.precision)


def test_the_factor_is_no_buffer():
    laplace = LaplaceCovariance(6)
    before = [name for name, _ in laplace.named_buffers()]
    laplace.add(*next(products(1)))
    laplace.factorize(torch.float64)
    assert [name for name, _ in laplace.named_buffers()] == before  # averages of models pair the buffers of two
    twin = copy.deepcopy(laplace)
    assert torch.equal(twin.factor.columns, laplace.factor.columns)
    assert twin.factor.columns is not laplace.factor.columns


# ---------------------------------------------------------------- read while it changes


def test_replace_is_the_sum_of_what_was_added_and_is_factored_at_once():
    added, replaced = LaplaceCovariance(6, 0.5), LaplaceCovariance(6, 0.5)
    replaced.add(*next(products(1)))
    total = torch.zeros(6, 6, dtype=torch.float64)
    for product, count in products(5):
        added.add(product, count)
        total += product
    replaced.mark_stale()
    replaced.replace(total, 20, torch.float64)
    assert replaced.state == "fitted"
    assert float(replaced.num_seen) == 20
    assert torch.equal(replaced.precision, added.precision)
    assert torch.equal(replaced.factor.columns, added.factorize(torch.float64).columns)
    total.zero_()  # the caller's own
    assert torch.equal(replaced.precision, added.precision)
    replaced.replace(total, 0, torch.float64)
    assert replaced.state == "none"


def test_a_sum_that_cannot_be_factored_leaves_the_covariance_as_it_was():
    laplace = LaplaceCovariance(6)
    laplace.add(*next(products(1)))
    before = laplace.precision
    with pytest.raises(CovarianceError, match="negative eigenvalue"):
        laplace.replace(-100 * EYE, 3, torch.float64)
    assert laplace.state == "fitted"
    assert torch.equal(laplace.precision, before)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_no_change_writes_into_the_sums_of_before(momentum):
    laplace = LaplaceCovariance(6, momentum=momentum)
    product, count = next(products(1))
    changes = [lambda: laplace.add(product, count), lambda: laplace.replace(product, 3), laplace.reset]
    if momentum is None:
        changes.insert(1, lambda: laplace.remove(product, 1))
    laplace.add(product, count)
    for change in changes:
        held = [getattr(laplace, name) for name in ("data_precision", "num_seen", "ridge_weight")]
        copies = [tensor.clone() for tensor in held]
        change()
        assert all(torch.equal(tensor, before) for tensor, before in zip(held, copies, strict=True))


def test_who_holds_a_fit_gets_its_factor_whatever_comes_after():
    laplace = LaplaceCovariance(6)
    product, count = next(products(1))
    laplace.add(product, count)
    expected = copy.deepcopy(laplace).factorize(torch.float64).columns
    held = laplace.require_fitted("test")
    laplace.add(50 * product, count)
    assert torch.equal(laplace.factorize(torch.float64, held).columns, expected)
    assert laplace.factor is None  # it was not put where the new one's belongs
    laplace.mark_stale(held)
    assert laplace.state == "fitted"  # what is said of an old one says nothing of this one
    laplace.mark_stale(laplace.present)
    assert laplace.state == "stale"


def test_a_reader_never_meets_a_mixture():
    """Many threads read a covariance that one goes on replacing: each answer is that of one of the two."""
    laplace = LaplaceCovariance(6)
    x = torch.ones(1, 6, dtype=torch.float64)
    answers = set()
    sums = [(product, count) for product, count in products(2)]
    for product, count in sums:
        laplace.replace(product, count)
        answers.add(float(laplace.factorize(torch.float64).variance(x)))
    wrong, done = [], threading.Event()

    def read():
        while not done.is_set():
            try:
                factor = laplace.factorize(torch.float64, laplace.require_fitted("read"))
                if float(factor.variance(x)) not in answers:
                    wrong.append("a mixture")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for turn in range(300):
            laplace.replace(*sums[turn % 2], torch.float64 if turn % 3 else None)
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert wrong == []


def test_nothing_is_lost_where_threads_add():
    laplace = LaplaceCovariance(6)
    product, count = next(products(1))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=lambda: [laplace.add(product, count) for _ in range(50)]) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert float(laplace.num_seen) == 150 * count


def test_it_can_be_pickled():
    laplace = LaplaceCovariance(6)
    laplace.add(*next(products(1)))
    twin = pickle.loads(pickle.dumps(laplace))
    twin.add(*next(products(1)))
    assert float(laplace.num_seen) == 4
    assert float(twin.num_seen) == 8


def test_numbers_averaged_into_an_unfitted_one_are_no_data():
    source, average = LaplaceCovariance(6), LaplaceCovariance(6)
    source.add(*next(products(1)))
    for mine, other in zip(average.buffers(), source.buffers(), strict=True):
        mine.copy_(other)  # as torch's AveragedModel does
    assert average.state == "none"
    assert int(average.state_dict()["state_code"]) == 0
    average.add(*next(products(1)))
    assert torch.equal(average.precision, source.precision)
