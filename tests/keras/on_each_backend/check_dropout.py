import threading

import numpy as np
import pytest

import keras
from hesitant.keras import DeepEnsemble, Deterministic, MCDropout, predict_with_uncertainty

from .models import numbers, same, state

L = keras.layers
X = np.random.RandomState(0).randn(40, 8).astype(np.float32)


def functional():
    """As the Keras recipe has it: dropout switched on in the layer's call, and batch statistics beside it."""
    inputs = keras.Input((8,))
    hidden = L.BatchNormalization()(L.Dense(32, activation="relu")(inputs))
    dropped = L.Dropout(0.5)(hidden, training=True)
    return keras.Model(inputs, L.Dense(3, activation="softmax")(dropped + hidden))


def sequential():
    layers = [L.Dropout(0.2), L.Dense(32, activation="relu"), L.Dropout(0.2), L.Dense(3, activation="softmax")]
    return keras.Sequential([keras.Input((8,)), *layers])


class Block(L.Layer):
    def __init__(self):
        super().__init__()
        self.dense, self.dropout = L.Dense(16, activation="relu"), L.Dropout(0.3)

    def call(self, inputs, training=None):
        return inputs + self.dropout(self.dense(inputs), training=training)


class Subclass(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.blocks, self.last = L.Dense(16), [Block(), Block()], L.Dense(3, activation="softmax")

    def call(self, inputs, training=None):
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden, training=training)
        return self.last(hidden)


def attention():
    inputs = keras.Input((8,))
    hidden = L.Dense(8)(L.Reshape((4, 2))(inputs))
    hidden = L.GlobalAveragePooling1D()(L.MultiHeadAttention(2, 4, dropout=0.3)(hidden, hidden))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(hidden))


def recurrent():
    inputs = keras.Input((8,))
    hidden = L.LSTM(4, dropout=0.3, recurrent_dropout=0.2)(L.Reshape((4, 2))(inputs))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(hidden))


@pytest.mark.parametrize("build", [functional, sequential, Subclass, attention, recurrent], ids=lambda b: b.__name__)
def test_dropout_is_on_and_nothing_else_changes(build):
    model = build()
    plain = model.predict(X, verbose=0)
    before = state(model)
    method = MCDropout(model, 30, outputs="probabilities")
    samples = method.outputs(X, seed=1)
    assert samples.shape == (30, 40, 3)
    assert len({sample.tobytes() for sample in samples}) == 30
    assert samples.std(0).mean() > 1e-3
    assert np.array_equal(samples, method.outputs(X, seed=1))
    assert not np.array_equal(samples, method.outputs(X, seed=2))
    assert same(before, state(model))
    assert np.array_equal(plain, model.predict(X, verbose=0))  # no trace of ours is its own


def test_mean_and_standard_deviation_are_those_of_the_masks():
    model = keras.Sequential([keras.Input((8,)), L.Dropout(0.25), L.Dense(3, use_bias=False)])
    mean, std = np.zeros((40, 3)), np.zeros((40, 3))
    samples = MCDropout(model, 4000).outputs(X, seed=0, batch_size=40)
    mean, std = samples.mean(0), samples.std(0)
    kernel = numbers(model.layers[-1].kernel)
    exact = np.sqrt(0.25 / 0.75 * (X**2) @ (kernel**2))
    np.testing.assert_allclose(std, exact, rtol=0.08)
    np.testing.assert_allclose(mean, X @ kernel, atol=5 * exact.max() / np.sqrt(4000))


def test_the_recipe_answers_mean_and_standard_deviation():
    model = functional()
    mean, std = predict_with_uncertainty(model, X, batch_size=16, num_iterations=25, seed=3)
    samples = MCDropout(model, 25, outputs="probabilities").outputs(X, batch_size=16, seed=3)
    np.testing.assert_allclose(mean, samples.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, samples.std(0), atol=1e-6)
    np.testing.assert_allclose(mean.sum(1), 1, atol=1e-5)


class Counted(L.Layer):
    """Counts how many rows go through it, in code that is not compiled."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def call(self, inputs):
        self.rows.append(inputs.shape[0])
        return inputs


def test_what_comes_before_the_first_dropout_is_computed_once():
    counted, after = Counted(), Counted()
    model = keras.Sequential([keras.Input((8,)), L.Dense(8), counted, L.Dropout(0.5), after, L.Dense(3)])
    method = MCDropout(model, 20)
    counted.rows.clear()
    after.rows.clear()
    method.outputs(X, seed=0)
    once = [rows for rows in counted.rows if rows is not None]
    assert all(rows == 40 for rows in once)
    assert any(rows == 800 for rows in after.rows) or None in after.rows  # TensorFlow's traces know no rows
    assert len(counted.rows) <= len(after.rows)


def test_masks_that_rows_share_differ_between_passes():
    model = keras.Sequential([keras.Input((8,)), L.Dropout(0.5, noise_shape=(1, 8)), L.Dense(3, use_bias=False)])
    same_input = np.repeat(X[:1], 5, axis=0)
    samples = MCDropout(model, 12).outputs(same_input, seed=0)
    np.testing.assert_allclose(samples, samples[:, :1].repeat(5, axis=1), atol=1e-6)  # one mask for the batch
    assert len({sample.tobytes() for sample in samples}) > 6


def test_without_dropout_it_is_an_error():
    with pytest.raises(ValueError, match="has no dropout"):
        MCDropout(keras.Sequential([keras.Input((8,)), L.Dense(3)]))
    with pytest.raises(ValueError, match="has no dropout"):
        MCDropout(keras.Sequential([keras.Input((8,)), L.Dropout(0.0), L.Dense(3)]))

    class Skipping(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout, self.dense = L.Dropout(0.5), L.Dense(3)

        def call(self, inputs, training=None):
            return self.dense(self.dropout(inputs) if training else inputs)

    model = Skipping()
    model(X)
    with pytest.raises(ValueError, match="took part"):
        MCDropout(model).outputs(X)
    with pytest.raises(ValueError, match="not built"):
        MCDropout(Skipping())


def test_a_thread_that_asks_the_model_meanwhile_gets_it_plain():
    model = sequential()
    plain = numbers(model(X))
    found = []

    class Asking(L.Layer):
        def call(self, inputs):
            thread = threading.Thread(target=lambda: found.append(numbers(model(X))))
            thread.start()
            thread.join()
            return inputs

    if keras.backend.backend() != "torch":
        pytest.skip("the others are asked while they trace")
    asking = keras.Sequential([keras.Input((8,)), *model.layers, Asking()])
    MCDropout(asking, 3, outputs="probabilities").outputs(X, seed=0)
    assert found
    assert all(np.array_equal(answer, plain) for answer in found)


def test_what_the_model_answers_is_said_and_not_guessed():
    with pytest.raises(ValueError, match="softmax or sigmoid"):
        MCDropout(sequential())
    with pytest.raises(ValueError, match="no distributions"):
        Deterministic(keras.Sequential([keras.Input((8,)), L.Dense(3)]), outputs="probabilities").predict(X)
    single = keras.Sequential([keras.Input((8,)), L.Dense(1)])
    answer = Deterministic(single).predict(X)
    np.testing.assert_allclose(answer.probs[:, 1], 1 / (1 + np.exp(-single.predict(X, verbose=0)[:, 0])), rtol=1e-5)


def test_an_ensemble_is_the_mean_of_models_that_differ():
    ensemble = DeepEnsemble.from_builder(sequential, 3, outputs="probabilities")
    answer = ensemble.predict(X)
    each = np.stack([member.predict(X, verbose=0) for member in ensemble.members])
    np.testing.assert_allclose(answer.probs, each.mean(0), atol=1e-6)
    np.testing.assert_allclose(answer.class_std, each.std(0), atol=1e-6)
    one = sequential()
    with pytest.raises(ValueError, match="same model twice"):
        DeepEnsemble([one, one], outputs="probabilities")

    def fixed():
        start = keras.initializers.GlorotUniform(seed=1)
        return keras.Sequential([keras.Input((8,)), L.Dense(3, kernel_initializer=start)])

    with pytest.raises(ValueError, match="same weights"):
        DeepEnsemble.from_builder(fixed, 2)
