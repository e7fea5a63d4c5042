import warnings

import numpy as np
import pytest

import keras
from hesitant.keras import (
    OrthogonalRandomFeatures,
    RandomFeatureGaussianProcess,
    ResetCovarianceCallback,
    fit_covariance,
)

from .models import Network, compiled, data, exact_variance, functional, numbers, same, sequential, state

X, Y = data()
FAR = X[:30] + 20


def trained(model, epochs=2, **settings):
    compiled(model).fit(X, Y, epochs=epochs, batch_size=100, verbose=0, **settings)
    return model


@pytest.mark.parametrize("num_inducing", [64, 320])
@pytest.mark.parametrize("ridge", [1.0, 1e-3])
def test_the_variance_is_that_of_the_plain_formula(num_inducing, ridge):
    layer = RandomFeatureGaussianProcess(2, num_inducing, gp_cov_momentum=-1, gp_cov_ridge_penalty=ridge)
    for begin in range(0, 250, 100):
        layer(X[begin : begin + 100], training=True)
    points = np.concatenate([X, FAR])
    expected = exact_variance(layer, X, points)
    size = expected.max()
    assert int(numbers(layer.num_seen)) == 250
    unfactored = numbers(layer(points, training=False)[1])
    np.testing.assert_allclose(unfactored, expected, atol=(2e-6 if ridge == 1 else 5e-3) * size)
    allowed = 3e-6 if ridge == 1 else 2e-4  # the sum over batches is float32, its condition 1e5
    layer.factor_covariance()
    factored = numbers(layer(points, training=False)[1])
    np.testing.assert_allclose(factored, expected, atol=allowed * size)
    layer.covariance = "full"
    whole = numbers(layer(points, training=False)[1])
    np.testing.assert_allclose(np.diag(whole), expected, atol=allowed * size)
    assert factored[250:].mean() > 2 * factored[:250].mean()


def test_inference_changes_no_weight_and_answers_the_same_bits_twice():
    model = trained(Network())
    before = state(model)
    first = model.predict(X, verbose=0)
    pair = [numbers(part) for part in model(X, return_covmat=True, training=False)]
    again = [numbers(part) for part in model(X, return_covmat=True, training=False)]
    assert np.array_equal(first, model.predict(X, verbose=0))
    assert same(pair, again)
    assert same(before, state(model))


def test_a_reset_forgets_and_the_next_epoch_counts_once():
    model = trained(Network(), epochs=3, callbacks=[ResetCovarianceCallback()], validation_data=(X, Y))
    assert int(numbers(model.gp.num_seen)) == 250
    assert numbers(model.gp.factor_state)[0] > 0  # factored for what comes
    model.gp.reset_covariance_matrix()
    np.testing.assert_array_equal(numbers(model.gp.precision), np.eye(64))
    with pytest.warns(UserWarning, match="training=training"):
        _, variance = model(X, return_covmat=True, training=False)
    np.testing.assert_allclose(numbers(variance), (numbers(model.gp.features(model.dense(X))) ** 2).sum(1), rtol=1e-5)


def test_where_the_reset_was_forgotten_an_exact_pass_counts_once():
    model = trained(Network(), epochs=2)
    assert int(numbers(model.gp.num_seen)) == 500  # twice: the reference's silent fault, which num_seen shows
    others = [numbers(variable) for variable in model.dense.variables] + [numbers(model.gp.beta)]
    model.dense.layer.kernel.assign(0.5 * numbers(model.dense.layer.kernel))  # far within its bound
    fit_covariance(model, X, batch_size=64)
    assert int(numbers(model.gp.num_seen)) == 250
    expected = exact_variance(model.gp, model.dense(X), model.dense(X))
    np.testing.assert_allclose(numbers(model(X, return_covmat=True, training=False)[1]), expected, rtol=2e-5)
    np.testing.assert_array_equal(others[-1], numbers(model.gp.beta))


@pytest.mark.parametrize("form", ["array", "pair", "batches", "dataset"])
def test_the_exact_pass_reads_data_in_every_form(form):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, place):
            rows = slice(100 * place, 100 * place + 100)
            return X[rows], Y[rows]

    model = Network()
    model(X, training=True)
    given = {
        "array": X,
        "pair": (X, Y),
        "batches": [(X[:50], Y[:50]), (X[50:], Y[50:])],
        "dataset": Batches(),
    }[form]
    fit_covariance(model, given)
    assert int(numbers(model.gp.num_seen)) == 250
    expected = exact_variance(model.gp, model.dense(X), model.dense(FAR))
    np.testing.assert_allclose(numbers(model(FAR, return_covmat=True, training=False)[1]), expected, rtol=1e-5)


def test_the_exact_pass_refuses_what_it_cannot_count():
    gp = RandomFeatureGaussianProcess(2, 32, gp_cov_momentum=-1)
    model = keras.Sequential([keras.Input((4,)), gp])
    model(X, training=True)
    before = state(gp)
    with pytest.raises(ValueError, match="not finite"):
        fit_covariance(model, np.full_like(X, np.nan))
    with pytest.raises(ValueError, match="empty"):
        fit_covariance(model, X[:0])
    with pytest.raises(ValueError, match="RandomFeatureGaussianProcess"):
        fit_covariance(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), X)
    assert same(before, state(gp))


def test_without_a_momentum_training_adds_nothing_and_the_exact_pass_all():
    model = trained(Network(gp_cov_momentum=None), callbacks=[ResetCovarianceCallback()])
    assert int(numbers(model.gp.num_seen)) == 0
    fit_covariance(model, X)
    expected = exact_variance(model.gp, model.dense(X), model.dense(X))
    np.testing.assert_allclose(numbers(model(X, return_covmat=True, training=False)[1]), expected, rtol=2e-5)


def test_the_precision_moves_or_it_is_said():
    model = compiled(Network(hand_on=False))
    if keras.backend.backend() == "jax":  # nothing tells its inner layers
        with pytest.raises(ValueError, match="training=training"):
            model.fit(X, Y, verbose=0)
    else:
        model.fit(X, Y, verbose=0)
        assert int(numbers(model.gp.num_seen)) == 250


class Untold(keras.Model):
    """A model whose call has no training argument at all."""

    def __init__(self):
        super().__init__()
        self.gp = RandomFeatureGaussianProcess(2, 32, gp_cov_momentum=-1)

    def call(self, inputs):
        return self.gp(inputs)[0]


def test_a_model_without_a_training_argument_is_found_out():
    model = compiled(Untold())
    jax = keras.backend.backend() == "jax"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has seen no training data")
        with pytest.raises(ValueError if jax else RuntimeError, match="training=training"):
            model.fit(X, Y, verbose=0, callbacks=[ResetCovarianceCallback()])
    model = Untold()
    with pytest.warns(UserWarning, match="training=training"):
        model(X)


def test_a_prediction_without_data_warns_in_compiled_code_as_well():
    model = Network()
    model.dense.build((None, 4))
    inputs = keras.Input((4,))
    compiled_model = keras.Model(inputs, model.gp(inputs))
    with pytest.warns(UserWarning, match="has seen no training data"):
        compiled_model.predict(X, verbose=0)


@pytest.mark.parametrize("batch_size", [32, 100])
def test_predict_joins_batches_of_different_sizes(batch_size):
    model, with_variance = functional()
    trained(model)
    logits, variance = with_variance.predict(X, batch_size=batch_size, verbose=0)
    assert logits.shape == (250, 2)
    np.testing.assert_allclose(variance, numbers(with_variance(X, training=False)[1]), rtol=1e-4)


def test_functional_and_sequential_models_train_and_count():
    for model in (functional()[0], sequential()):
        trained(model, epochs=1)
        assert int(numbers(model.layers[-1].num_seen)) == 250


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_under_half_precision_the_precision_is_kept_in_float32(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = Network()
    finally:
        keras.config.set_dtype_policy(before)
    trained(model, callbacks=[ResetCovarianceCallback()])
    assert {keras.backend.standardize_dtype(v.dtype) for v in (model.gp.data_precision, model.gp.beta)} == {"float32"}
    hidden = model.dense(X)
    logits, variance = model(X, return_covmat=True, training=False)
    assert keras.backend.standardize_dtype(variance.dtype) == "float32"
    fit_covariance(model, X)
    variance = numbers(model(X, return_covmat=True, training=False)[1])
    expected = exact_variance(model.gp, hidden, hidden)
    assert np.isfinite(numbers(logits)).all()
    np.testing.assert_allclose(variance, expected, rtol=3e-2)  # the hidden units are rounded, the sums are not
    assert np.linalg.eigvalsh(numbers(model.gp.precision).astype(np.float64)).min() >= 1 - 1e-4


def test_weights_that_are_set_answer_as_those_they_were_taken_from():
    model, with_variance = functional()
    trained(model, callbacks=[ResetCovarianceCallback()])
    other, other_with_variance = functional()
    with pytest.warns(UserWarning, match="seen no training data"):
        other_with_variance.predict(X, verbose=0)  # a trace from before
    other.set_weights(model.get_weights())
    ours, theirs = (m.predict(X, verbose=0) for m in (with_variance, other_with_variance))
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


def test_a_saved_model_answers_as_before(tmp_path):
    _, with_variance = functional(custom_random_features_initializer=OrthogonalRandomFeatures(seed=3))
    with_variance.layers[-1](with_variance.layers[1](X), training=True)
    with_variance.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(with_variance.predict(X, verbose=0), loaded.predict(X, verbose=0), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert loaded.layers[-1].get_config() == with_variance.layers[-1].get_config()


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="there Keras hands it to torch.compile, for minutes")
def test_a_model_compiled_to_the_end_counts_and_answers_as_others():
    model = compiled(Network(), jit_compile=True)
    model.fit(X, Y, batch_size=100, verbose=0, callbacks=[ResetCovarianceCallback()])
    assert int(numbers(model.gp.num_seen)) == 250
    np.testing.assert_allclose(model.predict(X, verbose=0), numbers(model(X, training=False)), atol=1e-5)


def test_two_models_in_one_process_know_nothing_of_each_other():
    first, second = trained(Network(), epochs=1), Network(num_inducing=32)
    before = state(first)
    trained(second, epochs=1)
    fit_covariance(second, X)
    assert same(before, state(first))
    assert int(numbers(second.gp.num_seen)) == 250


def test_the_momentum_forgets_and_the_ridge_stays():
    layer = RandomFeatureGaussianProcess(2, 16, gp_cov_momentum=0.5)
    for _ in range(40):
        layer(X[:50], training=True)
    phi = numbers(layer.features(X[:50])).astype(np.float64)
    np.testing.assert_allclose(numbers(layer.precision), np.eye(16) + 2 * phi.T @ phi, rtol=1e-4, atol=1e-4)


def test_a_kernel_scale_marked_trainable_trains():
    layer = RandomFeatureGaussianProcess(
        2, 32, gp_kernel_scale=2.0, gp_kernel_scale_trainable=True, return_gp_cov=False
    )
    model = compiled(keras.Sequential([keras.Input((4,)), layer]), lambda: keras.optimizers.Adam(0.1))
    before = float(numbers(layer.log_kernel_scale))
    np.testing.assert_allclose(np.exp(before), 2.0, rtol=1e-6)
    model.fit(X, Y, verbose=0)
    assert float(numbers(layer.log_kernel_scale)) != before


def test_orthogonal_features_are_orthogonal_in_blocks_that_differ():
    drawn = numbers(OrthogonalRandomFeatures(seed=0)((4, 8), dtype="float32")).astype(np.float64)
    first, second = drawn[:, :4], drawn[:, 4:]
    for block in (first, second):
        gram = block.T @ block
        np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-5)
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"gp_cov_likelihood": "student"}, "gp_cov_likelihood"),
        ({"gp_cov_likelihood": "poisson"}, "units=1"),
        ({"gp_cov_ridge_penalty": 0.0}, "gp_cov_ridge_penalty"),
        ({"covariance": "some"}, "covariance"),
        ({"gp_cov_momentum": 1.5}, "gp_cov_momentum"),
        ({"ridge_decay": True, "gp_cov_momentum": -1}, "ridge_decay"),
    ],
)
def test_arguments_out_of_their_range_are_named(settings, match):
    with pytest.raises(ValueError, match=match):
        RandomFeatureGaussianProcess(2, **settings)
