"""Small networks of every kind that can be saved, and what to ask of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.methods.small_transformers import TEXT
from torch import Tensor, nn

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout, Prediction

CLASSES = 3
FIELDS = ("probs", "log_probs", "logits", "logit_variance", "ood_score", "energy", "class_std", "expected_entropy")


class OwnNet(nn.Module):
    """A network of nobody's library, whose shape follows from its arguments, with a buffer that no state dict has."""

    def __init__(self, width: int = 8, classes: int = CLASSES) -> None:
        super().__init__()
        self.body, self.dropout, self.classifier = nn.Linear(4, width), nn.Dropout(0.2), nn.Linear(width, classes)
        self.register_buffer("shift", torch.linspace(0, 1, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(torch.relu(self.body(x) + self.shift)))


class Recurrent(nn.Module):
    """A recurrent network, whose layers keep their weights in a list, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.body, self.classifier = nn.LSTM(2, 6, 2, dropout=0.2, batch_first=True), nn.Linear(6, CLASSES)
        self.body.weight_hh_l1 = self.body.weight_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(self.first(x.unflatten(-1, (2, 2))))[0][:, -1])


PATH = f"{OwnNet.__module__}.OwnNet"


def own(width: int = 8) -> dict[str, Any]:
    return {"kind": "class", "name": PATH, "arguments": {"width": width}}


def mlp(classes: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, classes))


def timm_net(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return make


def torchvision_net(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=CLASSES)

    return make


def bert(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**TEXT, num_labels=CLASSES, **options))


def rows(n: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def images(n: int = 6, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(n: int = 8) -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (n, 6), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


RECURRENT = {"kind": "class", "name": f"{Recurrent.__module__}.Recurrent", "arguments": {}}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], dict[str, Any]]] = {
    "mlp": (mlp, rows, {}),
    "own": (OwnNet, rows, {"architecture": own()}),
    "recurrent": (Recurrent, rows, {"architecture": RECURRENT}),
    "bert": (bert, tokens, {}),
    "timm_resnet18": (timm_net("resnet18", drop_rate=0.1), images, {}),
    "timm_vit_tiny": (timm_net("vit_tiny_patch16_224", img_size=32, drop_rate=0.1, depth=2), images, {}),
    "torchvision_resnet18": (torchvision_net("resnet18"), images, {}),
}


def sngp(network: nn.Module, **options: Any) -> SNGP:
    return SNGP(network, num_inducing=16, generator=torch.Generator().manual_seed(3), **options)


METHODS: dict[str, Callable[[nn.Module], Any]] = {
    "deterministic": Deterministic,
    "sngp": sngp,
    "mc_dropout": lambda network: MCDropout(network, 3),
}


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def ensemble_of(make: Callable[[], nn.Module], method: Callable[[nn.Module], Any]) -> DeepEnsemble:
    return DeepEnsemble([method(seeded(make, seed)) for seed in (1, 2)])


def fit_covariances(method: nn.Module, data: Any) -> None:
    for module in method.modules():
        if isinstance(module, SNGP):
            module.fit_covariance(data)


def assert_same_bits(one: Prediction, other: Prediction) -> None:
    assert one.available == other.available
    for name in FIELDS:
        if name in one.available:
            a, b = getattr(one, name), getattr(other, name)
            assert a.dtype == b.dtype
            assert torch.equal(a, b), name
    assert one.calibration == other.calibration


def assert_loads_as(method: Any, data: Any, loaded: Any, **options: Any) -> None:
    assert type(loaded) is type(method)
    assert not any(module.training for module in loaded.modules())
    assert_same_bits(method.eval().predict(data, **options), loaded.predict(data, **options))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
