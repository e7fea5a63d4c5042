"""Whoever asks a Keras model through hesitant leaves it as it was, and is answered about the inputs that he gave."""

import threading
from typing import Any

import numpy as np
import pytest

import keras
from hesitant.keras import (
    SNGP,
    DeepEnsemble,
    MCDropout,
    RandomFeatureGaussianProcess,
    SpectralNormalization,
    fit_covariance,
)

from .models import compiled, data, functional, numbers

L = keras.layers
X, Y = data()
BACKEND = keras.backend.backend()


def dropping(rate: float = 0.3) -> Any:
    return keras.Sequential([keras.Input((4,)), L.Dense(8, activation="relu"), L.Dropout(rate), L.Dense(2)])


class Shuffled(keras.utils.PyDataset):
    """The inputs, in another order each time that they are read."""

    def __init__(self, x: np.ndarray) -> None:
        super().__init__()
        self.x, self.random = x, np.random.RandomState(0)
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self.x) // 50)

    def __getitem__(self, place: int) -> np.ndarray:
        if place == 0:
            self.on_epoch_end()
        return self.x[self.order[50 * place : 50 * (place + 1)]]

    def on_epoch_end(self) -> None:
        self.order = self.random.permutation(len(self.x))


def test_a_mask_within_a_nested_model_reaches_what_comes_after_the_dropout() -> None:
    encoder = keras.Sequential([keras.Input((7,), dtype="int32"), L.Embedding(20, 6, mask_zero=True), L.Dense(6)])
    model = keras.Sequential([keras.Input((7,), dtype="int32"), encoder, L.Dropout(1e-6), L.LSTM(5), L.Dense(3)])
    ids = np.random.RandomState(0).randint(1, 20, (40, 7))
    ids[:, 3:] = 0  # padding
    for passes in MCDropout(model, 4).outputs(ids):
        np.testing.assert_allclose(passes, model.predict(ids, verbose=0), atol=1e-4)


def test_an_error_leaves_the_model_its_weights() -> None:
    inputs = keras.Input((4,))
    hidden = L.Dropout(0.3)(L.Dense(8)(inputs))
    model = keras.Model(inputs, RandomFeatureGaussianProcess(2, 16)(hidden))  # answers logits and covariance
    fit_covariance(model, X)
    before = [np.array(weight) for weight in model.get_weights()]
    with pytest.raises(ValueError, match=r"answers a (tuple|list)"):
        MCDropout(model, 5).predict(X)
    for wrong in (lambda: SNGP(model).predict(X[:, :3]), lambda: fit_covariance(model, X * np.nan)):
        with pytest.raises(Exception):  # noqa: B017, PT011  of Keras, whose kind depends on the backend
            wrong()
    for weight, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, then)


def test_two_threads_get_what_each_gets_alone() -> None:
    methods = [MCDropout(dropping(), 20), MCDropout(dropping(), 20)]
    alone = [method.predict(X).probs for method in methods]
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for place in (number % 2, 0):
            try:
                wrong.extend([] if np.array_equal(methods[place].predict(X).probs, alone[place]) else [place])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_each_pass_and_member_is_asked_about_the_same_inputs() -> None:
    members = [dropping() for _ in range(2)]
    for method in (DeepEnsemble(members), MCDropout(members[0], 100)):
        x = 20 * X  # of which each is answered with certainty
        sure = np.sort(method.predict(x).probs[:, 0])
        shuffled = np.sort(method.predict(Shuffled(x)).probs[:, 0])
        np.testing.assert_allclose(shuffled, sure, atol=0.25)
        assert np.abs(shuffled - sure).mean() < 0.02
        generated = method.predict(x[start : start + 50] for start in range(0, 250, 50)).probs[:, 0]
        np.testing.assert_allclose(np.sort(generated), sure, atol=0.25)
    with pytest.raises(ValueError, match="x has no batches"):
        DeepEnsemble(members).predict(iter([]))


def test_kernels_that_did_not_train_are_not_projected() -> None:
    """Wrapping changes nothing: a pretrained layer is above the bound until a step moves it."""
    pretrained = L.Dense(6)
    pretrained.build((None, 4))
    pretrained.set_weights([11 * np.eye(4, 6, dtype=np.float32), np.zeros(6, np.float32)])
    inputs = keras.Input((4,))
    bounded = SpectralNormalization(pretrained, norm_multiplier=0.9)
    logits, _ = RandomFeatureGaussianProcess(2, 16)(bounded(inputs))
    model = keras.Model(inputs, logits)
    for trainable in (True, False):
        bounded.trainable = trainable
        fit_covariance(model, X)
        np.testing.assert_allclose(np.linalg.norm(numbers(pretrained.kernel), 2), 11, rtol=1e-6)
    bounded.trainable = True
    compiled(model).fit(X, Y, epochs=1, verbose=0)
    pretrained.kernel.assign(2 * numbers(pretrained.kernel))
    moved = numbers(pretrained.kernel)
    with pytest.raises(ValueError, match="not finite"):
        fit_covariance(model, np.concatenate([X, X * np.nan]))
    np.testing.assert_array_equal(numbers(pretrained.kernel), moved)
    fit_covariance(model, X)
    assert np.linalg.norm(numbers(pretrained.kernel), 2) < 0.92


def test_a_covariance_of_other_weights_is_refused() -> None:
    model, with_variance = functional(gp_cov_momentum=None)
    fit_covariance(model, X)
    right = SNGP(with_variance).predict(X).logit_variance
    compiled(model).fit(X, Y, epochs=1, verbose=0)
    for either in (model, with_variance):
        with pytest.raises(ValueError, match=r"moved since fit_covariance .* fit_covariance\(model"):
            SNGP(either).predict(X)
    fit_covariance(model, X)
    assert SNGP(model).predict(X).logit_variance.shape == right.shape


def test_a_covariance_is_fitted_to_what_data_loaders_give() -> None:
    model, _ = functional()
    fit_covariance(model, X)
    expected = SNGP(model).predict(X).logit_variance
    given: list[Any] = [(X[start : start + 64], Y[start : start + 64]) for start in range(0, 250, 64)]
    forms: list[Any] = [given]
    if BACKEND != "torch":
        tensorflow = pytest.importorskip("tensorflow")
        forms.append(tensorflow.data.Dataset.from_tensor_slices((X, Y)).batch(64))
    if BACKEND != "tensorflow":
        import torch

        tensors = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
        forms += [torch.utils.data.DataLoader(tensors, batch_size=64), torch.from_numpy(X)]
    for form in forms:
        fit_covariance(model, form)
        np.testing.assert_allclose(SNGP(model).predict(X).logit_variance, expected, rtol=1e-5)
