"""What a Keras model answered is looked at before it is taken for logits or probabilities."""

import numpy as np
import pytest

import keras
from hesitant.keras import (
    SNGP,
    DeepEnsemble,
    Deterministic,
    MCDropout,
    RandomFeatureGaussianProcess,
    SpectralNormalization,
    fit_covariance,
)
from hesitant.keras.answers import of_members
from keras import ops

from .models import data

L = keras.layers
X, _ = data(40)


def built(end, width=3, **settings):
    """A functional model that ends as told, with a dropout in it."""
    inputs = keras.Input((4,))
    hidden = L.Dropout(0.3)(inputs)
    return keras.Model(inputs, end(L.Dense(width, **settings)(hidden)))


METHODS = {
    "Deterministic": lambda end, **options: Deterministic(built(end, 1), **options),
    "MCDropout": lambda end, **options: MCDropout(built(end, 1), 5, **options),
    "DeepEnsemble": lambda end, **options: DeepEnsemble([built(end, 1), built(end, 1)], **options),
}


def same_weights(method, other):
    for ours, theirs in zip(models_of(method), models_of(other), strict=True):
        theirs.set_weights(ours.get_weights())


def models_of(method):
    return method.members if isinstance(method, DeepEnsemble) else [method.model]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_a_single_number_an_input_is_a_column_of_one(name, outputs):
    squashed = ops.sigmoid if outputs == "probabilities" else lambda x: x
    column = METHODS[name](squashed, outputs=outputs)
    flat = METHODS[name](lambda x: ops.squeeze(squashed(x), -1), outputs=outputs)
    same_weights(column, flat)
    assert models_of(flat)[0].predict(X, verbose=0).shape == (40,)
    ours, expected = flat.predict(X), column.predict(X)
    for field in ("probs", "samples", "logits", "evidence"):
        one, other = getattr(ours, field), getattr(expected, field)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, atol=1e-6)
    assert ours.probs.shape == (40, 2)


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_an_answer_of_a_single_logit_does_not_depend_on_its_neighbours(outputs):
    end = ops.sigmoid if outputs == "probabilities" else lambda x: x
    method = METHODS["Deterministic"](lambda x: ops.squeeze(end(x), -1), outputs=outputs)
    whole = method.predict(X).probs
    np.testing.assert_allclose(method.predict(X[:1]).probs, whole[:1], atol=1e-6)
    np.testing.assert_allclose(method.predict(X[::-1]).probs, whole[::-1], atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_more_axes_are_refused(name):
    method = METHODS[name](lambda x: ops.tile(x[:, None], (1, 5, 3)))
    with pytest.raises(ValueError, match=r"\(40, 5, 3\).*\(B, C\), or \(B, 1\) or \(B,\)"):
        method.predict(X)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_numbers_that_are_not_finite_are_refused(name, value, outputs):
    end = ops.sigmoid if outputs == "probabilities" else lambda x: x
    method = METHODS[name](lambda x: end(x) + x * 0, outputs=outputs)
    wrong = X.copy()
    wrong[7] = value
    with pytest.raises(ValueError, match=r"nan at \[.*7.*\].*finite.*input or weight"):
        method.predict(wrong)


def gaussian_process():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, RandomFeatureGaussianProcess(2, 16, gp_cov_momentum=None)(inputs))
    fit_covariance(model, X)
    return model


def test_an_sngp_refuses_numbers_that_are_not_finite():
    wrong = X.copy()
    wrong[7] = np.nan
    method = SNGP(gaussian_process())
    assert np.isfinite(method.predict(X).probs).all()
    with pytest.raises(ValueError, match="finite"):
        method.predict(wrong)


def test_several_outputs_are_refused_and_named():
    with pytest.raises(ValueError, match=r"\(40, 2\).*\(40,\).*hesitant\.keras\.SNGP"):
        Deterministic(gaussian_process()).predict(X)
    with pytest.raises(ValueError, match=r"dict of 'a' \(40, 3\).*expected one array"):
        Deterministic(built(lambda x: {"a": x})).predict(X)
    with pytest.raises(ValueError, match="expected one"):
        MCDropout(built(lambda x: [x, x]), 5).predict(X)
    answered = [gaussian_process().predict(X, verbose=0) for _ in range(2)]
    with pytest.raises(ValueError, match=r"hesitant\.keras\.SNGP"):
        of_members(answered, "logits")


def test_classes_in_place_of_logits_are_refused():
    with pytest.raises(TypeError, match=r"int.* logits"):
        Deterministic(built(lambda x: ops.argmax(x, -1))).predict(X)


def test_members_of_other_classes_are_refused():
    two, three = (np.zeros((5, classes), np.float32) for classes in (2, 3))
    with pytest.raises(ValueError, match=r"member 1 .*\(5, 3\).*member 0 \(5, 2\)"):
        of_members([two, three], "logits")
    answer = of_members([np.zeros(5, np.float32), np.ones((5, 1), np.float32)], "logits")
    assert answer.samples.shape == (2, 5, 2)


class Nested(keras.Model):
    def __init__(self, *layers):
        super().__init__()
        self.inner = keras.Sequential([keras.Input((4,)), *layers])
        self.inner(X)

    def call(self, inputs):
        return self.inner(inputs)


def sequential(*layers):
    return keras.Sequential([keras.Input((4,)), *layers])


ENDS = {
    "softmax operation": lambda: built(ops.softmax),
    "sigmoid operation": lambda: built(ops.sigmoid, 1),
    "function of keras.activations": lambda: built(keras.activations.softmax),
    "operation, then its shape": lambda: built(lambda x: ops.squeeze(ops.sigmoid(x), -1), 1),
    "operation, then an element": lambda: built(lambda x: ops.sigmoid(x)[:, 0], 1),
    "layer, then its dtype": lambda: built(
        lambda x: L.Activation("linear", dtype="float32")(L.Activation("softmax")(x))
    ),
    "Lambda": lambda: built(L.Lambda(keras.activations.softmax)),
    "Softmax layer": lambda: sequential(L.Dense(3), L.Softmax()),
    "Dense": lambda: built(lambda x: x, activation="softmax"),
    "Dense within a model": lambda: sequential(sequential(L.Dense(3, activation="softmax"))),
    "Softmax within a model": lambda: sequential(sequential(L.Dense(3), L.Softmax())),
    "operation within two models": lambda: sequential(sequential(built(ops.softmax))),
    "layer of a model within a subclass": lambda: Nested(L.Dense(3), L.Softmax()),
    "Dense within a wrapper": lambda: sequential(SpectralNormalization(L.Dense(3, activation="softmax"))),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_model_that_ends_in_probabilities_has_to_say_so(end):
    model = ENDS[end]()
    with pytest.raises(ValueError, match="ends in a softmax or sigmoid"):
        Deterministic(model)
    answered = model.predict(X, verbose=0)
    answer = Deterministic(model, outputs="probabilities").predict(X)
    expected = answered if answered.shape[1:] == (3,) else answered.reshape(-1)
    np.testing.assert_allclose(answer.probs if expected.ndim == 2 else answer.probs[:, 1], expected, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: built(lambda x: x),
        lambda: built(ops.log_softmax),
        lambda: built(ops.tanh),
        lambda: sequential(L.Dense(8, activation="sigmoid"), L.Dense(3)),
        lambda: sequential(sequential(L.Dense(8, activation="softmax")), L.Dense(3)),
        lambda: sequential(sequential(L.Dense(8, activation="sigmoid"), L.Dense(3))),
        lambda: built(lambda x: L.Dense(3)(ops.softmax(x) * x)),
        lambda: built(lambda x: ops.softmax(x) * x),
        lambda: keras.Sequential([L.Dense(3)]),
    ],
)
def test_a_model_that_answers_logits_is_taken_at_its_word(build):
    Deterministic(build())


def test_members_that_answer_several_outputs_are_refused():
    for inputs in (X, iter([X[:9], X[9:]])):
        with pytest.raises(ValueError, match=r"hesitant\.keras\.SNGP"):
            DeepEnsemble([gaussian_process(), gaussian_process()]).predict(inputs)
