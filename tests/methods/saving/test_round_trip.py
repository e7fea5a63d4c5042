"""What is loaded answers with the same bits as what was saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.saving.models import (
    CLASSES,
    METHODS,
    NETWORKS,
    PATH,
    RECURRENT,
    OwnNet,
    assert_loads_as,
    assert_same_bits,
    bert,
    ensemble_of,
    fit_covariances,
    mlp,
    own,
    rows,
    seeded,
    sngp,
    tokens,
)
from torch import nn

import hesitant
from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.nn import CovarianceError


def saved_and_loaded(method: Any, folder: Path, **options: Any) -> Any:
    method.save_pretrained(folder, **options)
    return hesitant.load(folder, trust=[PATH, RECURRENT["name"]])


@pytest.mark.parametrize("method", [*METHODS, "ensemble", "ensemble_of_sngp"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_method_around_every_network_answers_with_the_same_bits(
    network: str, method: str, tmp_path: Path
) -> None:
    make, inputs, options = NETWORKS[network]
    if method == "mc_dropout" and network == "torchvision_resnet18":
        pytest.skip("it has no dropout")
    if method.startswith("ensemble"):
        built: Any = ensemble_of(make, METHODS["sngp"] if method == "ensemble_of_sngp" else lambda net: net)
    else:
        built = METHODS[method](seeded(make))
    data = inputs()
    fit_covariances(built, data)
    assert_loads_as(built, data, saved_and_loaded(built, tmp_path, **options))


def test_nested_ensembles_of_several_methods_and_architectures(tmp_path: Path) -> None:
    inner = DeepEnsemble([sngp(seeded(mlp)), MCDropout(seeded(mlp, 1), 3, masks="shared")], temperature=1.5)
    method = DeepEnsemble([inner, Deterministic(seeded(OwnNet)), seeded(mlp, 2)], temperature=0.7)
    fit_covariances(method, rows())
    given = {"kind": "given"}
    method.save_pretrained(tmp_path, architecture=[given, given, own(), given])
    loaded = hesitant.load(tmp_path, trust=[PATH], model=[mlp(), mlp(), mlp()])
    assert_loads_as(method, rows(), loaded, posterior="monte_carlo", num_samples=5)
    assert [type(member) for member in loaded.members] == [DeepEnsemble, Deterministic, nn.Sequential]
    assert loaded.members[0].members[1].masks == "shared"


def test_a_method_within_a_method(tmp_path: Path) -> None:
    method = Deterministic(sngp(seeded(mlp)))
    fit_covariances(method, rows())
    loaded = saved_and_loaded(method, tmp_path)
    assert isinstance(loaded.model, SNGP)
    assert torch.equal(loaded(rows()), method.eval()(rows()))


@pytest.mark.parametrize("posterior", ["mean_field", "monte_carlo"])
def test_a_calibrated_temperature_and_factor_come_back(posterior: str, tmp_path: Path) -> None:
    method = sngp(seeded(mlp))
    data = rows(60), torch.arange(60) % CLASSES
    fit_covariances(method, data)
    hesitant.calibrate(method, data)
    method.temperature, method.gp.mean_field_factor = 1.3, 0.1 + 0.2
    loaded = saved_and_loaded(method, tmp_path)
    assert_loads_as(method, data, loaded, posterior=posterior)
    assert (loaded.temperature, loaded.gp.mean_field_factor) == (1.3, 0.1 + 0.2)
    before = method.uncalibrated_factor
    loaded.forget_calibration()
    assert (loaded.temperature, loaded.gp.mean_field_factor) == (1.0, before)


def test_a_factor_that_was_set_by_hand_is_an_option_of_the_loaded_model(tmp_path: Path) -> None:
    method = sngp(seeded(mlp))
    fit_covariances(method, rows())
    method.gp.mean_field_factor = None
    assert_loads_as(method, rows(), saved_and_loaded(method, tmp_path))


def test_neighbors_come_back(tmp_path: Path) -> None:
    method = sngp(seeded(mlp), ood_score="knn")
    fit_covariances(method, rows())
    loaded = saved_and_loaded(method, tmp_path)
    assert_loads_as(method, rows(seed=5), loaded)
    assert torch.equal(loaded.neighbors.inputs, method.neighbors.inputs)


def test_a_single_logit_comes_back(tmp_path: Path) -> None:
    method = sngp(seeded(lambda: mlp(1)), likelihood="binary_logistic", classifier="3")
    fit_covariances(method, rows())
    assert_loads_as(method, rows(), saved_and_loaded(method, tmp_path))


def test_probabilities_come_back(tmp_path: Path) -> None:
    for make in (Deterministic, sngp):
        method = make(nn.Sequential(seeded(mlp), nn.Softmax(-1)), outputs="probabilities")
        fit_covariances(method, rows())
        assert_loads_as(method, rows(), saved_and_loaded(method, tmp_path))


def test_a_network_that_is_its_classifier_alone(tmp_path: Path) -> None:
    method = sngp(seeded(lambda: nn.Linear(4, CLASSES)))
    fit_covariances(method, rows())
    assert_loads_as(method, rows(), saved_and_loaded(method, tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_kept_in_every_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    method = sngp(seeded(OwnNet))
    fit_covariances(method, rows())
    method.to(dtype)
    loaded = saved_and_loaded(method, tmp_path, architecture=own())
    before = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    after = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    assert loaded.model.shift.dtype == dtype
    assert_loads_as(method, rows().to(dtype), loaded)


def test_one_dtype_for_the_body_and_another_for_the_rest(tmp_path: Path) -> None:
    class Mixed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](self[0](x.half()).float())

    method = Deterministic(Mixed(nn.Linear(4, 8).half(), nn.Linear(8, CLASSES)))
    method.save_pretrained(tmp_path, architecture={"kind": "given"})
    loaded = hesitant.load(tmp_path, model=Mixed(nn.Linear(4, 8), nn.Linear(8, CLASSES)))
    assert_loads_as(method, rows(), loaded)


def test_memory_in_another_order_is_kept(tmp_path: Path) -> None:
    method = Deterministic(seeded(NETWORKS["timm_resnet18"][0])).to(memory_format=torch.channels_last)
    loaded: Any = saved_and_loaded(method, tmp_path)
    strides = {name: tensor.stride() for name, tensor in method.state_dict().items()}
    assert {name: tensor.stride() for name, tensor in loaded.state_dict().items()} == strides
    x = NETWORKS["timm_resnet18"][1]().to(memory_format=torch.channels_last)
    assert_loads_as(method, x, loaded)


# ---------------------------------------------------------------- what is shared, frozen, unsaved


def test_tied_weights_are_saved_once_and_are_one_again(tmp_path: Path) -> None:
    from safetensors import safe_open

    network = bert()
    network.bert.encoder.layer[1].output.dense.weight = network.bert.encoder.layer[0].output.dense.weight
    method = Deterministic(network)
    loaded: Any = saved_and_loaded(method, tmp_path)
    assert_loads_as(method, tokens(), loaded)
    first, second = (loaded.model.bert.encoder.layer[i].output.dense for i in (0, 1))
    assert first.weight is second.weight
    (file,) = tmp_path.glob("model-*.safetensors")
    with safe_open(file, framework="pt") as tensors:
        assert sum(name.endswith("output.dense.weight") for name in tensors.keys()) == 3  # noqa: SIM118


def test_the_ties_of_transformers_come_back(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    class Picked(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.network(input_ids, attention_mask).logits[:, 0]

    sizes = bert().config.to_dict()
    make = lambda: Picked(BertForMaskedLM(BertConfig(**sizes)))  # noqa: E731
    method = Deterministic(seeded(make))
    method.save_pretrained(tmp_path, architecture={"kind": "given"})
    loaded: Any = hesitant.load(tmp_path, model=make())
    assert_loads_as(method, tokens(), loaded)
    head, embeddings = loaded.model.network.cls.predictions.decoder, loaded.model.network.bert.embeddings
    assert head.weight is embeddings.word_embeddings.weight


def test_layers_that_list_their_weights_list_those_that_were_loaded(tmp_path: Path) -> None:
    make, _, options = NETWORKS["recurrent"]
    body = saved_and_loaded(Deterministic(seeded(make)), tmp_path, **options).model.body
    assert body.weight_hh_l1 is body.weight_hh_l0
    listed = {id(weight) for weight in body._flat_weights}
    assert listed == {id(parameter) for parameter in body.parameters()}


def test_features_that_members_share_are_shared_again(tmp_path: Path) -> None:
    body = seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
    members = [nn.Sequential(body, nn.Linear(8, CLASSES)) for _ in range(2)]
    method = DeepEnsemble(members)
    loaded: Any = saved_and_loaded(method, tmp_path)
    assert_loads_as(method, rows(), loaded)
    first, second = (member[0] for member in loaded.members)
    assert first[0].weight is second[0].weight
    assert first[1].running_mean is second[1].running_mean


def test_what_was_frozen_is_frozen_again_and_nothing_else(tmp_path: Path) -> None:
    method = sngp(seeded(mlp))
    method.model[0].weight.requires_grad_(False)
    loaded = saved_and_loaded(method, tmp_path)
    trained = {name: p.requires_grad for name, p in method.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == trained


def test_a_buffer_that_no_state_dict_has_comes_back_as_it_was(tmp_path: Path) -> None:
    method = Deterministic(seeded(OwnNet))
    method.model.shift.mul_(3)
    assert_loads_as(method, rows(), saved_and_loaded(method, tmp_path, architecture=own()))


def test_weights_are_in_memory_of_their_own_and_not_in_the_file(tmp_path: Path) -> None:
    method = Deterministic(seeded(mlp))
    loaded: Any = saved_and_loaded(method, tmp_path)
    (file,) = tmp_path.glob("model-*.safetensors")
    with file.open("r+b") as handle:
        handle.write(b"\0" * file.stat().st_size)
    assert_loads_as(method, rows(), loaded)


# ---------------------------------------------------------------- the covariance


def test_a_fitted_covariance_is_fitted_after_loading_and_can_be_added_to(tmp_path: Path) -> None:
    method = sngp(seeded(mlp))
    fit_covariances(method, rows())
    loaded = saved_and_loaded(method, tmp_path)
    assert loaded.covariance_state == "fitted"
    assert torch.equal(loaded.gp.precision, method.gp.precision)
    for model in (method, loaded):
        features = model.model[:3](rows(seed=7))
        model.gp.update(features)
    assert_same_bits(method.predict(rows()), loaded.predict(rows()))


def test_a_folder_without_covariance_says_so_when_it_is_asked(tmp_path: Path) -> None:
    loaded = saved_and_loaded(sngp(seeded(mlp)), tmp_path)
    assert loaded.covariance_state == "none"
    with pytest.raises(CovarianceError, match=r"not fitted.*fit_covariance"):
        loaded.predict(rows())


def test_a_stale_covariance_is_stale_after_loading(tmp_path: Path) -> None:
    method = sngp(seeded(mlp))
    fit_covariances(method, rows())
    with torch.no_grad():
        method.model[0].weight.add_(1)
    loaded = saved_and_loaded(method, tmp_path)
    assert loaded.covariance_state == "stale"
    with pytest.raises(CovarianceError, match="stale"):
        loaded.predict(rows())


def test_weights_that_move_after_loading_make_it_stale(tmp_path: Path) -> None:
    method = sngp(seeded(mlp))
    fit_covariances(method, rows())
    loaded = saved_and_loaded(method, tmp_path)
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded.train()(rows()).sum().backward()
    optimizer.step()
    assert loaded.eval().covariance_state == "stale"


def test_a_running_covariance_comes_back(tmp_path: Path) -> None:
    method = sngp(seeded(mlp), momentum=0.9)
    method.train()
    for seed in range(3):
        method(rows(seed=seed))
    assert_loads_as(method, rows(), saved_and_loaded(method, tmp_path))


def test_a_head_that_was_not_trained_still_starts_from_its_classifier_after_loading(tmp_path: Path) -> None:
    method = sngp(seeded(mlp))
    loaded = saved_and_loaded(method, tmp_path)
    for model in (method, loaded):
        model.fit_covariance(rows(60))
    assert_same_bits(method.predict(rows()), loaded.predict(rows()))
    again = saved_and_loaded(loaded, tmp_path)  # once started, it is not as it was drawn
    assert not again.start_from_classifier(rows(60))


def test_training_goes_on_as_it_would_have(tmp_path: Path) -> None:
    method = sngp(seeded(mlp), norm_bound=0.5)
    method.fit_covariance(rows())
    method.save_pretrained(tmp_path)

    def trained(model: Any) -> Any:
        model.train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        torch.manual_seed(0)
        for _ in range(3):
            optimizer.zero_grad()
            model(rows()).logsumexp(1).sum().backward()
            optimizer.step()
        return model

    method = trained(method)
    loaded = trained(hesitant.load(tmp_path))  # not before: a step of any optimizer is taken for one of its own
    for (name, one), (_, other) in zip(method.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert method.bounds() == loaded.bounds()


# ---------------------------------------------------------------- options


def test_the_config_holds_every_option_and_the_loaded_model_has_it(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "kernel_scale": 2.0,
        "normalize_input": True,
        "train_kernel_scale": True,
        "activation": torch.sin,
        "random_features_std": np.float64(0.5),
        "scale_random_features": False,
        "parametrization": "standard",
        "bias": 0.1,
        "train_bias": True,
        "l2_penalty": 0.01,
        "ridge_penalty": 0.1,
        "norm_bound": 0.9,
        "only": ["0", lambda name, module: name == "3"],
        "conv_norm": "reshaped",
        "temperature": 2.0,
        "ood_score": "knn",
    }
    network = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)], nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    method = sngp(network, **given)
    fit_covariances(method, rows())
    loaded = saved_and_loaded(method, tmp_path)
    assert_loads_as(method, rows(), loaded)
    options = json.loads((tmp_path / "config.json").read_text())["method"]["options"]
    assert options["only"] == ["0", "3"]
    assert options["activation"] == "torch.sin"
    assert loaded.saved_options() == method.saved_options() == options
    assert loaded.spectral_normalizer.unbounded == method.spectral_normalizer.unbounded
    for name in ("l2_penalty", "activation", "feature_scale", "num_inducing"):
        assert getattr(loaded.gp, name) == getattr(method.gp, name)


def test_options_of_the_other_methods_come_back(tmp_path: Path) -> None:
    method = MCDropout(seeded(mlp), 4, masks="shared", chunk_size=2, stochastic_depth=True, temperature=0.5)
    assert saved_and_loaded(method, tmp_path).saved_options() == method.saved_options()
    ensemble = DeepEnsemble([mlp(), mlp()], vectorize=False, temperature=3.0)
    assert saved_and_loaded(ensemble, tmp_path).saved_options() == ensemble.saved_options()
    kept = SNGP(mlp(), norm_bound=None)
    assert saved_and_loaded(kept, tmp_path).spectral_normalizer is None


def test_an_activation_of_ones_own_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    method = sngp(seeded(mlp), activation=lambda x: x.cos())
    with pytest.raises(TypeError, match="activation"):
        method.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("size", [1000, "1KB"])
def test_large_models_are_saved_in_shards(size: Any, tmp_path: Path) -> None:
    method = sngp(seeded(mlp))
    fit_covariances(method, rows())
    loaded = saved_and_loaded(method, tmp_path, max_shard_size=size)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[0].name.endswith(f"-00001-of-{len(files):05}.safetensors")
    assert_loads_as(method, rows(), loaded)


@pytest.mark.parametrize("size", [0, -1, "5", "5 parsecs", 1.5, True])
def test_a_size_that_is_none_is_refused(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_size"):
        Deterministic(mlp()).save_pretrained(tmp_path / "new", max_shard_size=size)


def test_names_of_classes_come_back_and_stay(tmp_path: Path) -> None:
    names = ["cat", "dog", "größer als beide"]
    method = Deterministic(seeded(mlp))
    loaded = saved_and_loaded(method, tmp_path, label_names=names)
    assert loaded.label_names == names
    assert saved_and_loaded(loaded, tmp_path).label_names == names
    with pytest.raises(TypeError, match="label_names"):
        method.save_pretrained(tmp_path, label_names="cat")


def test_loading_disturbs_no_generator(tmp_path: Path) -> None:
    Deterministic(seeded(NETWORKS["timm_vit_tiny"][0])).save_pretrained(tmp_path)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    loaded: Any = hesitant.load(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_many_threads_may_load_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    folders = []
    for name, method in (("a", sngp(seeded(NETWORKS["bert"][0]))), ("b", sngp(seeded(mlp)))):
        fit_covariances(method, tokens() if name == "a" else rows())
        method.save_pretrained(tmp_path / name)
        folders.append((method, tmp_path / name, tokens() if name == "a" else rows()))
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda work: hesitant.load(work[1]), folders * 4))
    for (method, _, data), model in zip(folders * 4, loaded, strict=True):
        assert_loads_as(method, data, model)
