import sys

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
    from_torch,
    to_torch,
)

from .models import data, functional, numbers

L = keras.layers
X, Y = data()
BACKEND = keras.backend.backend()


def plain():
    return keras.Sequential([keras.Input((4,)), L.Dense(8, activation="relu"), L.Dropout(0.2), L.Dense(2)])


def test_answers_become_predictions():
    for method, split in ((Deterministic(plain()), False), (MCDropout(plain(), 10), True)):
        answer = method.predict(X)
        prediction = answer.prediction(Y)
        np.testing.assert_allclose(prediction.probs.numpy(), answer.probs, atol=1e-6)
        assert np.array_equal(prediction.targets.numpy(), Y)
        logits = answer.logits.astype(np.float64)  # the score is of the logits' mean over the passes
        uniformity = 2 * np.exp((logits - np.logaddexp.reduce(logits, -1, keepdims=True)).mean(-1))
        np.testing.assert_allclose(prediction.ood_score, uniformity, rtol=1e-5)
        if split:
            np.testing.assert_allclose(prediction.class_std.numpy(), answer.class_std, atol=1e-5)
    model, with_variance = functional()
    fit_covariance(model, X)
    answer = SNGP(model).predict(X)
    np.testing.assert_allclose(answer.logit_variance, with_variance.predict(X, verbose=0)[1], atol=1e-6)
    prediction = answer.prediction(Y)
    np.testing.assert_allclose(prediction.logit_variance.numpy()[:, 0], answer.logit_variance)
    # A factor shrinks the mean-field logits, which the score looks at.
    assert (SNGP(model, mean_field_factor=50.0).predict(X).prediction().ood_score > prediction.ood_score).all()
    assert BACKEND == "torch" or sys.modules.get("triton") is None


def test_answers_in_half_precision_become_predictions():
    policy = keras.config.dtype_policy()
    for name in ("mixed_float16", "mixed_bfloat16"):
        keras.config.set_dtype_policy(name)
        try:
            members = [plain() for _ in range(2)]
        finally:
            keras.config.set_dtype_policy(policy)
        for method in (Deterministic(members[0]), MCDropout(members[0], 4), DeepEnsemble(members)):
            answer = method.predict(X)
            assert answer.logits.dtype == np.float32
            np.testing.assert_array_equal(answer.prediction().evidence.numpy(), answer.logits)


def test_keras_models_stand_beside_those_of_pytorch(tmp_path):
    import torch

    import hesitant
    from hesitant.report import report

    methods = {
        "Keras": Deterministic(plain()),
        "Keras dropout": MCDropout(plain(), 8),
        "Keras ensemble": DeepEnsemble.from_builder(plain, 2),
        "PyTorch": hesitant.Deterministic(torch.nn.Linear(4, 2)),
    }
    comparison = hesitant.compare(
        methods, (torch.from_numpy(X), torch.from_numpy(Y).long()), ood={"far": torch.from_numpy(X + 9)}
    )
    for name in list(methods)[:3]:
        probs = methods[name].predict(X, batch_size=250).probs
        np.testing.assert_allclose(comparison.predictions[name].probs.numpy(), probs, atol=1e-5)
    policy = hesitant.DeferralPolicy.calibrate(comparison.predictions["Keras"], max_risk=0.99)
    assert policy.accept(comparison.predictions["Keras dropout"]).shape == (250,)
    page = tmp_path / "report.html"
    report(comparison, page)
    text = page.read_text()
    assert all(f">{name}</" in text for name in methods)


def test_logits_of_any_framework_are_calibrated():
    import hesitant

    logits = 2 * Deterministic(plain()).predict(X).logits
    gap = np.random.RandomState(0).logistic(size=len(X))  # the targets are drawn from softmax(logits)
    targets = (logits[:, 1] - logits[:, 0] + gap > 0).astype(np.int64)
    calibration = hesitant.calibrate(10 * logits, targets)
    assert 5 < calibration.temperature < 20
    prediction = calibration.prediction(10 * logits, targets)
    np.testing.assert_allclose(prediction.logits.numpy(), 10 * logits, rtol=1e-6)
    again = hesitant.calibrate(prediction.log_probs.numpy(), targets)
    np.testing.assert_allclose(again.temperature, 1, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"normalize_input": True}, {"gp_kernel_scale": 3.0}])
def test_weights_go_to_pytorch_and_back(settings):
    import torch

    from hesitant.nn import RandomFeatureGaussianProcess as TorchProcess

    names = {"gp_kernel_scale": "kernel_scale"}
    layer = RandomFeatureGaussianProcess(3, 128, gp_cov_momentum=-1, **settings)
    layer(X, training=True)
    layer.factor_covariance()
    module = TorchProcess(4, 3, num_inducing=128, **{names.get(k, k): v for k, v in settings.items()}).eval()
    to_torch(layer, module)
    posterior = module.posterior(torch.from_numpy(X))
    logits, variance = layer(X, training=False)
    np.testing.assert_allclose(posterior.variance[:, 0].detach().numpy(), numbers(variance), atol=1e-6)
    np.testing.assert_allclose(posterior.mean.detach().numpy(), numbers(logits), atol=1e-6)

    other = RandomFeatureGaussianProcess(3, 128, gp_cov_momentum=-1, **settings)
    other.build((None, 4))
    from_torch(other, module)
    np.testing.assert_allclose(numbers(other(X, training=False)[1]), numbers(variance), atol=1e-6)
    assert int(numbers(other.num_seen)) == 250


def test_the_head_of_an_sngp_goes_over_with_its_own_parametrization():
    import torch

    from hesitant.nn import RandomFeatureGaussianProcess as TorchProcess

    module = TorchProcess(4, 2, num_inducing=64, parametrization="linear", kernel_scale="median").eval()
    module.decide(torch.from_numpy(X))
    module.update(torch.from_numpy(X))
    layer = RandomFeatureGaussianProcess(2, 64)
    layer.build((None, 4))
    from_torch(layer, module)
    posterior = module.posterior(torch.from_numpy(X))
    logits, variance = layer(X, training=False)
    np.testing.assert_allclose(numbers(variance), posterior.variance[:, 0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(numbers(logits), posterior.mean.detach().numpy(), atol=2e-6)


def test_a_ridge_that_has_decayed_goes_over_with_the_covariance():
    import torch

    from hesitant.nn import RandomFeatureGaussianProcess as TorchProcess

    module = TorchProcess(4, 2, num_inducing=64, momentum=0.5, ridge_decay=True)
    for start in range(0, 60, 20):
        module.update(torch.from_numpy(X[start : start + 20]))
    layer = RandomFeatureGaussianProcess(2, 64)
    layer.build((None, 4))
    from_torch(layer, module)
    assert float(module.laplace.ridge_weight) == pytest.approx(0.125)
    expected = module.eval().posterior(torch.from_numpy(X)).variance[:, 0]
    np.testing.assert_allclose(numbers(layer(X, training=False)[1]), expected.detach().numpy(), rtol=1e-4)


def test_kernels_go_over_in_the_layout_of_each():
    import torch

    dense, linear = SpectralNormalization(L.Dense(5)), torch.nn.Linear(4, 5)
    dense.build((None, 4))
    to_torch(dense, linear)
    np.testing.assert_allclose(linear(torch.from_numpy(X)).detach().numpy(), numbers(dense(X)), atol=1e-6)
    images = np.random.RandomState(0).randn(2, 7, 6, 4).astype(np.float32)
    conv, torch_conv = L.Conv2D(5, 3, padding="same", data_format="channels_last"), torch.nn.Conv2d(4, 5, 3, padding=1)
    conv.build(images.shape)
    from_torch(conv, torch_conv)
    theirs = torch_conv(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(numbers(conv(images)), theirs.detach().numpy(), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected \(5, 4\)"):
        to_torch(dense, torch.nn.Linear(4, 6))
    with pytest.raises(TypeError, match="no exchange"):
        to_torch(L.ReLU(), linear)


def test_the_keras_recipe_answers_as_the_same_network_of_pytorch():
    import torch

    import hesitant

    keras_model = keras.Sequential([keras.Input((30,))])
    torch_model = torch.nn.Sequential()
    for width_in, width, activation in ((30, 50, torch.nn.ReLU()), (50, 25, torch.nn.ReLU()), (25, 10, None)):
        dense, linear = L.Dense(width, activation="relu" if activation else "softmax"), torch.nn.Linear(width_in, width)
        keras_model.add(L.Dropout(0.2))
        keras_model.add(dense)
        torch_model.extend([torch.nn.Dropout(0.2), linear, *([activation] if activation else [])])
        to_torch(dense, linear)
    x = np.random.RandomState(0).rand(60, 30).astype(np.float32)
    plain = hesitant.Deterministic(torch_model).predict(torch.from_numpy(x))
    np.testing.assert_allclose(keras_model.predict(x, verbose=0), plain.probs.numpy(), atol=1e-5)
    ours = MCDropout(keras_model, 400, outputs="probabilities").predict(x)
    theirs = hesitant.MCDropout(torch_model, num_samples=400).predict(torch.from_numpy(x))
    # Other masks of the same distribution: means within five of their standard errors, deviations alike.
    error = np.sqrt(2 / 400) * theirs.class_std.numpy()
    assert (np.abs(ours.probs - theirs.probs.numpy()) < 5 * error + 1e-4).all()
    np.testing.assert_allclose(ours.class_std, theirs.class_std.numpy(), rtol=0.5)
    np.testing.assert_allclose(ours.class_std.mean(), theirs.class_std.numpy().mean(), rtol=0.05)


def test_what_would_not_answer_alike_is_refused():
    from hesitant.nn import RandomFeatureGaussianProcess as TorchProcess

    layer = RandomFeatureGaussianProcess(2, 64)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="gp_cov_ridge_penalty"):
        to_torch(layer, TorchProcess(4, 2, num_inducing=64, ridge_penalty=2.0))
    with pytest.raises(ValueError, match="not decided"):
        to_torch(layer, TorchProcess(4, 2, num_inducing=64, kernel_scale="median"))


@pytest.mark.skipif(BACKEND != "torch", reason="elsewhere a Keras model is no torch.nn.Module")
def test_the_methods_of_pytorch_send_a_keras_model_here():
    import hesitant

    for refuse in (
        lambda: hesitant.SNGP(plain()),
        lambda: hesitant.MCDropout(plain()),
        lambda: hesitant.Deterministic(plain()),
        lambda: hesitant.DeepEnsemble([plain(), plain()]),
        lambda: hesitant.fit(plain(), (X, Y), epochs=1),
    ):
        with pytest.raises(TypeError, match=r"hesitant\.keras"):
            refuse()


def test_a_fitted_covariance_survives_the_exchange_of_a_whole_model():
    from hesitant.nn import RandomFeatureGaussianProcess as TorchProcess

    model, with_variance = functional()
    fit_covariance(model, X)
    _, variance = with_variance.predict(X, verbose=0)
    assert (variance > 0).all()
    layer = next(layer for layer in model.layers if isinstance(layer, RandomFeatureGaussianProcess))
    module = TorchProcess(16, 2, num_inducing=64).eval()
    to_torch(layer, module)
    other, answers = functional()
    other.set_weights(model.get_weights())
    from_torch(next(layer for layer in other.layers if isinstance(layer, RandomFeatureGaussianProcess)), module)
    np.testing.assert_allclose(answers.predict(X, verbose=0)[1], variance, atol=1e-6)
