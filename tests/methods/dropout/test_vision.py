"""MC dropout on the models of timm and torchvision, at their smallest; nothing is downloaded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.dropout.oracle import (
    assert_same_distribution,
    generator,
    is_stochastic_depth,
    operations,
    plain_passes,
)
from torch import Tensor, nn

from hesitant import MCDropout

CLASSES = 3


def images(size: int = 32, number: int = 3) -> Tensor:
    return torch.randn(number, 3, size, size, generator=generator())


def distinct(build: Callable[[], Any]) -> Any:
    """A model whose weights are large enough for its dropout to matter, as if trained."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = build()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.std() < 0.1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
        for norm in norms:
            norm.weight.fill_(1.0)  # some start at zero, which leaves branches out
            norm.momentum = 1.0
        if norms:
            model.train()(images(64, 8))
    return model.eval()


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return make


def timm_vit(fused: bool = True, **rates: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model: Any = timm_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, **rates)()
        for block in model.blocks:
            block.attn.fused_attn = fused
        return model

    return make


def torchvision_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision.models

        return getattr(torchvision.models, name)(num_classes=CLASSES, **options)

    return make


def torchvision_densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(4, (2, 2), 8, drop_rate=0.3, num_classes=CLASSES)


def torchvision_vit(**rates: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models import VisionTransformer

        model = VisionTransformer(
            32, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES, **rates
        )
        nn.init.normal_(model.heads.head.weight)
        return model

    return make


def torchvision_swin(**rates: float) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models.swin_transformer import SwinTransformer

        rates.setdefault("stochastic_depth_prob", 0.0)
        return SwinTransformer([4, 4], 16, [2, 2], [2, 4], [2, 2], num_classes=CLASSES, **rates)

    return make


SWIN: dict[str, Any] = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2)}
VISION: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm vit drop_rate": (timm_vit(drop_rate=0.3), 32),
    "timm vit pos_drop_rate": (timm_vit(pos_drop_rate=0.3), 32),
    "timm vit proj_drop_rate": (timm_vit(proj_drop_rate=0.3), 32),
    "timm vit attn_drop_rate": (timm_vit(attn_drop_rate=0.3), 32),
    "timm vit attn_drop_rate, not fused": (timm_vit(fused=False, attn_drop_rate=0.3), 32),
    "timm vit patch_drop_rate": (timm_vit(patch_drop_rate=0.5), 32),
    "timm resnet drop_rate": (timm_model("test_resnet", drop_rate=0.3), 32),
    "timm resnet drop_block_rate": (timm_model("test_resnet", drop_block_rate=0.2), 64),
    "timm efficientnet drop_rate": (timm_model("test_efficientnet", drop_rate=0.3), 32),
    "timm convnext drop_rate": (timm_model("test_convnext", drop_rate=0.3), 32),
    "timm swin attn_drop_rate": (timm_model("swin_tiny_patch4_window7_224", **SWIN, attn_drop_rate=0.3), 32),
    "torchvision vit dropout": (torchvision_vit(dropout=0.3), 32),
    "torchvision vit attention_dropout": (torchvision_vit(attention_dropout=0.3), 32),
    "torchvision swin dropout": (torchvision_swin(dropout=0.3), 32),
    "torchvision swin attention_dropout": (torchvision_swin(attention_dropout=0.3), 32),
    "torchvision densenet": (torchvision_densenet, 32),
    "torchvision mobilenet_v3_small": (torchvision_model("mobilenet_v3_small", width_mult=0.25, dropout=0.3), 32),
    "torchvision squeezenet1_1": (torchvision_model("squeezenet1_1"), 64),
    "torchvision googlenet": (torchvision_model("googlenet", aux_logits=True, init_weights=False), 64),
}
LARGE = ("swin", "googlenet")
# Those in which dropout comes before the classifier alone.
LAST = ("resnet drop_rate", "efficientnet", "convnext", "vit drop_rate")


def vision_model(name: str) -> tuple[Any, Tensor]:
    build, size = VISION[name]
    return distinct(build), images(size)


@pytest.mark.parametrize("name", VISION)
def test_each_dropout_of_a_vision_model_answers_as_in_the_plain_loop(name: str) -> None:
    model, x = vision_model(name)
    prediction = MCDropout(model, num_samples=20).predict(x, seed=0)
    assert bool((prediction.class_std > 1e-7).all())
    passes = 40 if any(part in name for part in LARGE) else 80
    samples = MCDropout(model, num_samples=3 * passes).predict_samples(x, seed=0)
    assert_same_distribution(samples, plain_passes(model, x, passes), jointly="patch" not in name)


@pytest.mark.parametrize("name", VISION)
def test_each_dropout_of_a_vision_model_is_shared_or_an_error(name: str) -> None:
    model, x = vision_model(name)
    method = MCDropout(model, num_samples=6, masks="shared")
    try:
        samples = method.predict_samples(x[:1].repeat(3, 1, 1, 1), seed=0, batch_size=2)
    except ValueError as error:
        if not any(part in name for part in ("patch", "swin", "block")):
            raise
        assert "masks='shared'" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(samples, samples[:, :1].expand_as(samples), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in VISION if any(part in name for part in LAST)])
def test_all_before_the_classifier_runs_once(name: str) -> None:
    model, x = vision_model(name)
    once = operations(lambda: model(x))
    assert operations(lambda: MCDropout(model, num_samples=30).predict(x, seed=0)) <= 1.2 * once


@pytest.mark.parametrize(
    "name", ["timm resnet drop_rate", "torchvision mobilenet_v3_small", "timm efficientnet drop_rate"]
)
def test_statistics_of_a_vision_model_stay_and_one_image_is_enough(name: str) -> None:
    model, x = vision_model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [module.training for module in model.train().modules()]
    prediction = MCDropout(model, num_samples=5).predict(x[:1])
    assert bool((prediction.class_std > 0).all())
    assert [module.training for module in model.modules()] == modes
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_images_with_channels_last_answer_the_same() -> None:
    model, x = vision_model("timm resnet drop_rate")
    expected = MCDropout(model, num_samples=30).predict(x, seed=0)
    for other in (model, model.to(memory_format=torch.channels_last)):
        prediction = MCDropout(other, num_samples=30).predict(x.to(memory_format=torch.channels_last), seed=0)
        torch.testing.assert_close(prediction.probs, expected.probs, rtol=1e-3, atol=1e-4)


def test_auxiliary_classifiers_have_no_say() -> None:
    """GoogLeNet answers three outputs in training mode, each with dropout of its own."""
    model = distinct(torchvision_model("googlenet", aux_logits=True, init_weights=False, dropout=0.0))
    with pytest.raises(ValueError, match=r"[Dd]ropout"):
        MCDropout(model, num_samples=3).predict(images(64, 1))


# ---------------------------------------------------------------- stochastic depth


def hugging_face_convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "layer_scale_init_value": 1.0}
    return ConvNextForImageClassification(ConvNextConfig(num_labels=CLASSES, drop_path_rate=0.5, **sizes))


DEPTH: dict[str, Callable[[], nn.Module]] = {
    "timm vit": timm_vit(drop_path_rate=0.5),
    "timm resnet": timm_model("test_resnet", drop_path_rate=0.5),
    "torchvision swin": torchvision_swin(stochastic_depth_prob=0.5),
    "Hugging Face ConvNext": hugging_face_convnext,
}


@pytest.mark.parametrize("name", DEPTH)
def test_stochastic_depth_is_no_dropout_unless_asked_for(name: str) -> None:
    model = distinct(DEPTH[name])
    x: Any = {"pixel_values": images()} if "Hugging" in name else images()
    assert any(is_stochastic_depth(module) for module in model.modules())
    with pytest.raises(ValueError, match=r"[Dd]ropout"):
        MCDropout(model, num_samples=3).predict(x)
    method = MCDropout(model, num_samples=100, stochastic_depth=True)
    assert bool((method.predict(x, seed=0).class_std > 1e-5).all())
    samples, again = method.predict_samples(x, seed=0), method.predict_samples(x, seed=0)
    assert torch.equal(samples, again)
    assert_same_distribution(samples, plain_passes(model, x, 100, stochastic_depth=True))


def test_stochastic_depth_beside_dropout_is_inactive_unless_asked_for() -> None:
    model = distinct(timm_vit(drop_path_rate=0.5, proj_drop_rate=0.3))
    for active in (False, True):
        method = MCDropout(model, num_samples=200, stochastic_depth=active)
        samples = method.predict_samples(images(), seed=0)
        assert_same_distribution(samples, plain_passes(model, images(), 200, stochastic_depth=active))
