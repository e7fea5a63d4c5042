"""How a network is built is told and made sure of, or has to be given, and that is said."""

import functools
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.saving.models import (
    PATH,
    OwnNet,
    assert_loads_as,
    bert,
    images,
    mlp,
    own,
    rows,
    seeded,
    timm_net,
    tokens,
    torchvision_net,
)
from tests.methods.small_transformers import DISTIL, GPT, VIT
from torch import nn

import hesitant
from hesitant import SNGP, DeepEnsemble, Deterministic
from hesitant.methods import ArchitectureWarning, SavedModelError
from hesitant.methods.saving import outline_digest

CLASSES = 3


def architecture_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["method"]["model"]["architecture"]


def of_transformers(kind: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**sizes, num_labels=CLASSES))

    return make


TOLD: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "resnet18d": (timm_net("resnet18d", drop_path_rate=0.1), images, "resnet18d.ra2_in1k"),
    "one channel": (timm_net("resnet18", in_chans=1), lambda: images()[:, :1], "resnet18.a1_in1k"),
    "average pool": (
        timm_net("vit_tiny_patch16_224", depth=1, img_size=32, global_pool="avg"), images,
        "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    ),
    "convnext_atto": (timm_net("convnext_atto"), images, "convnext_atto.d2_in1k"),
    "mobilenet_v3_small": (torchvision_net("mobilenet_v3_small"), images, "mobilenet_v3_small"),
    "resnet34": (torchvision_net("resnet34"), images, "resnet34"),
    "eager bert": (lambda: bert(attn_implementation="eager"), tokens, "BertForSequenceClassification"),
    "distilbert": (
        of_transformers("DistilBertForSequenceClassification", "DistilBertConfig", **DISTIL), tokens,
        "DistilBertForSequenceClassification",
    ),
    "gpt2": (
        of_transformers("GPT2ForSequenceClassification", "GPT2Config", **GPT), tokens,
        "GPT2ForSequenceClassification",
    ),
    "vit": (
        of_transformers("ViTForImageClassification", "ViTConfig", **VIT), lambda: {"pixel_values": images()},
        "ViTForImageClassification",
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding="valid", bias=False), nn.BatchNorm2d(4, eps=1e-3), nn.LeakyReLU(0.2),
            nn.MaxPool2d(2), nn.Sequential(nn.GroupNorm(2, 4), nn.GELU("tanh")), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.LayerNorm(4, bias=False), nn.Linear(4, CLASSES),
        ),
        images, "Sequential",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", TOLD)
def test_a_network_is_told_and_built_without_a_word(which: str, tmp_path: Path) -> None:
    make, data, name = TOLD[which]
    for method in (Deterministic(seeded(make)), SNGP(seeded(make), num_inducing=8)):
        if isinstance(method, SNGP):
            method.fit_covariance(data())
        method.save_pretrained(tmp_path)
        assert architecture_in(tmp_path)["name"] == name
        assert_loads_as(method, data(), hesitant.load(tmp_path))


def test_the_attention_that_it_runs_is_kept(tmp_path: Path) -> None:
    Deterministic(bert(attn_implementation="eager")).save_pretrained(tmp_path)
    loaded: Any = hesitant.load(tmp_path)
    assert loaded.model.config._attn_implementation == "eager"


def test_a_stochastic_depth_and_rates_come_back(tmp_path: Path) -> None:
    Deterministic(timm_net("resnet18d", drop_path_rate=0.3, drop_rate=0.2)()).save_pretrained(tmp_path)
    loaded: Any = hesitant.load(tmp_path)
    rates = [m.drop_prob for m in loaded.model.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    assert loaded.model.drop_rate == 0.2


def test_a_head_that_was_reset_is_told(tmp_path: Path) -> None:
    network: Any = seeded(timm_net("resnet18"))
    network.reset_classifier(7)
    method = Deterministic(network.eval())
    method.save_pretrained(tmp_path)
    assert_loads_as(method, images(), hesitant.load(tmp_path))


# ---------------------------------------------------------------- what cannot be told

UNTOLD: dict[str, Callable[[], nn.Module]] = {
    "own code": OwnNet,
    "own code that derives from a layer": lambda: type("Own", (nn.Linear,), {})(4, CLASSES),
    "an activation of timm's network that is a class": timm_net("resnet18", act_layer=nn.SiLU),
    "a layer that was replaced by one of the same shape": lambda: replaced(timm_net("resnet18")()),
    "an attribute that was changed": lambda: changed(timm_net("vit_tiny_patch16_224", depth=1, img_size=32)()),
    "no argument that is known": lambda: forgotten(timm_net("vit_tiny_patch16_224", depth=1, img_size=32)()),
    "another width": lambda: wider(torchvision_net("resnet18")()),
    "a part of a network": lambda: pooler(),
    "layers of one's own in a Sequential": lambda: nn.Sequential(nn.Linear(4, 4), type("Own", (nn.ReLU,), {})()),
}


def pooler() -> nn.Module:
    from transformers.models.bert.modeling_bert import BertPooler

    return BertPooler(bert().config)


def replaced(network: Any) -> nn.Module:
    network.act1 = nn.Hardswish(inplace=True)
    return network


def changed(network: Any) -> nn.Module:
    network.blocks[0].attn.scale = 0.5
    return network


def forgotten(network: Any) -> nn.Module:
    del network._model_args
    return network


def wider(network: Any) -> nn.Module:
    network.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    return network


@pytest.mark.parametrize("which", UNTOLD)
def test_what_cannot_be_told_is_saved_and_said_and_given(which: str, tmp_path: Path) -> None:
    method = Deterministic(seeded(UNTOLD[which]))
    with pytest.warns(ArchitectureWarning, match=r"does not tell how to build.*hesitant.load\(folder, model=net\)"):
        method.save_pretrained(tmp_path)
    with pytest.raises(SavedModelError, match="model=net"):
        hesitant.load(tmp_path)
    loaded: Any = hesitant.load(tmp_path, model=seeded(UNTOLD[which], 5))
    for name, tensor in method.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_the_warning_is_once_for_all_networks_and_not_for_who_says_so(tmp_path: Path) -> None:
    method = DeepEnsemble([OwnNet(), mlp(), OwnNet()])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        method.save_pretrained(tmp_path)
        method.save_pretrained(tmp_path, architecture=[{"kind": "given"}, {"kind": "given"}, own()])
    assert [str(w.message).count("2 of 3 networks") for w in seen] == [1]
    assert seen[0].filename == __file__


def test_the_warning_says_which_network_it_is(tmp_path: Path) -> None:
    method = DeepEnsemble([mlp(), DeepEnsemble([mlp(), Deterministic(OwnNet())])])
    with pytest.warns(ArchitectureWarning, match=r"\(members.1.members.1.model: a OwnNet is no network of"):
        method.save_pretrained(tmp_path)


def test_networks_of_which_some_are_given_take_their_places(tmp_path: Path) -> None:
    method = DeepEnsemble([seeded(OwnNet), seeded(mlp, 1), seeded(OwnNet, 2)])
    with pytest.warns(ArchitectureWarning):
        method.save_pretrained(tmp_path)
    assert_loads_as(method, rows(), hesitant.load(tmp_path, model=[OwnNet(), OwnNet()]))
    assert_loads_as(method, rows(), hesitant.load(tmp_path, model=[OwnNet(), mlp(), OwnNet()]))


def test_a_given_network_that_looks_changed_is_loaded_with_a_warning(tmp_path: Path) -> None:
    Deterministic(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, CLASSES))).save_pretrained(tmp_path)
    other = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, CLASSES))
    with pytest.warns(ArchitectureWarning, match="that is given is made of other layers"):
        hesitant.load(tmp_path, model=other)


def test_a_library_that_builds_something_else_by_now_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    method = Deterministic(timm_net("resnet18")())
    method.save_pretrained(tmp_path)
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, act_layer=nn.SiLU))
    with pytest.warns(ArchitectureWarning, match=rf"saved with version {timm.__version__}.*Install that version"):
        hesitant.load(tmp_path)


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Deterministic(timm_net("resnet18")()).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SavedModelError, match=r"a network of timm.*install it, hesitant\[timm\], or load with"):
        hesitant.load(tmp_path)


def test_adapters_are_given_and_come_back(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapters = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
            return get_peft_model(bert(), adapters)

    method = SNGP(seeded(adapted), num_inducing=8)
    method.fit_covariance(tokens())
    method.save_pretrained(tmp_path, architecture={"kind": "given"})
    loaded = hesitant.load(tmp_path, model=adapted())
    assert_loads_as(method, tokens(), loaded)
    trained = [name for name, p in method.named_parameters() if p.requires_grad]
    assert [name for name, p in loaded.named_parameters() if p.requires_grad] == trained


def test_a_method_that_was_compiled_is_saved_as_it_was_written(tmp_path: Path) -> None:
    method = Deterministic(seeded(mlp))
    torch.compile(method).save_pretrained(tmp_path)
    assert_loads_as(method, rows(), hesitant.load(tmp_path))


# ---------------------------------------------------------------- what the user says


def test_an_own_class_is_built_by_its_path_and_arguments(tmp_path: Path) -> None:
    method = Deterministic(seeded(functools.partial(OwnNet, 5)))
    method.save_pretrained(tmp_path, architecture=own(5))
    assert_loads_as(method, rows(), hesitant.load(tmp_path, trust=PATH))
    assert_loads_as(method, rows(), hesitant.load(tmp_path, trust={"another.Net", PATH}))
    assert_loads_as(method, rows(), hesitant.load(tmp_path, model=OwnNet(5)))


def test_a_function_that_answers_a_network_does_too(tmp_path: Path) -> None:
    path = f"{mlp.__module__}.mlp"
    method = Deterministic(seeded(mlp))
    method.save_pretrained(tmp_path, architecture={"kind": "class", "name": path, "arguments": {"classes": CLASSES}})
    assert_loads_as(method, rows(), hesitant.load(tmp_path, trust=path))


def test_an_architecture_that_is_said_helps_where_it_cannot_be_told(tmp_path: Path) -> None:
    make = timm_net("resnet18", act_layer=nn.SiLU)
    method = Deterministic(seeded(make))
    said = {"kind": "timm", "name": "resnet18", "arguments": {"num_classes": CLASSES, "act_layer": "silu"}}
    method.save_pretrained(tmp_path, architecture=said)
    assert_loads_as(method, images(), hesitant.load(tmp_path))


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (own(9), r"makes another network.*body.weight has the shape \(8, 4\), and \(9, 4\) there"),
        ({"kind": "class", "name": f"{PATH}s", "arguments": {}}, "cannot be imported"),
        ({"kind": "class", "name": PATH, "arguments": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"kind": "torch", "name": "Linear", "arguments": {"in_features": 4, "out_features": 3}}, "another network"),
        ({"kind": "class", "name": PATH}, "expected {'kind': ..., 'name': ..., 'arguments'"),
        ({"class": PATH}, "with a kind of torch, timm"),
        ("OwnNet", "expected {'kind'"),
        ({"kind": "class", "name": PATH, "arguments": {"width": float("nan")}}, "no JSON"),
        ({"kind": "class", "name": PATH, "arguments": {"width": torch.tensor(8)}}, "no JSON"),
        ([own(), own()], "architecture has 2 entries, expected one for each of 1"),
    ],
)
def test_an_architecture_that_does_not_make_this_network_is_refused(said: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        Deterministic(OwnNet()).save_pretrained(tmp_path / "new", architecture=said)
    assert not (tmp_path / "new").exists()


def test_another_activation_is_another_network(tmp_path: Path) -> None:
    said = {"kind": "timm", "name": "resnet18", "arguments": {"num_classes": CLASSES}}
    with pytest.raises(ValueError, match=r"another network.*act1 is SiLU\(.*ReLU"):
        Deterministic(timm_net("resnet18", act_layer=nn.SiLU)()).save_pretrained(tmp_path, architecture=said)


def test_a_class_of_ones_own_around_a_method_is_refused(tmp_path: Path) -> None:
    class Own(SNGP):
        pass

    with pytest.raises(TypeError, match="a class of your own around a method"):
        Own(mlp()).save_pretrained(tmp_path)


# ---------------------------------------------------------------- other libraries


def test_transformers_loads_no_random_head_of_a_saved_folder(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification

    folder = tmp_path / "bert"  # a name that could be taken for the kind of model
    method = SNGP(bert(), num_inducing=8)
    method.fit_covariance(tokens())
    method.save_pretrained(folder)
    for loader in (AutoModel, AutoModelForSequenceClassification, AutoConfig):
        with pytest.raises(ValueError, match="model type `hesitant`"):
            loader.from_pretrained(folder)
    with pytest.raises(OSError, match="no file named"):
        BertForSequenceClassification.from_pretrained(folder)


def test_what_another_version_of_torch_says_of_a_bias_is_no_other_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = outline_digest(network)
    said = nn.BatchNorm1d.extra_repr
    monkeypatch.setattr(nn.BatchNorm1d, "extra_repr", lambda self: said(self).replace(", bias=True", ""))
    assert outline_digest(network) == before
    monkeypatch.setattr(nn.BatchNorm1d, "extra_repr", lambda self: said(self).replace("affine=", "affine=True, bias="))
    assert outline_digest(network) == before
    assert outline_digest(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, eps=1e-3))) != before
