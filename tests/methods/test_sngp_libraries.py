"""SNGP on the models of the libraries that people use, at their smallest; nothing is downloaded."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.small_transformers import DISTIL, GPT, TEXT, VIT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from hesitant import SNGP
from hesitant.methods.outputs import logits_of

CLASSES = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(size: int = 32) -> dict[str, Tensor]:
    return {"x": torch.randn(4, 3, size, size, generator=generator())}


def tokens(length: int = 6) -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (4, length), generator=generator())
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def torchvision_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision.models

        return getattr(torchvision.models, name)(num_classes=CLASSES, **options)

    return make


def small_densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(4, (2, 2), 8, num_classes=CLASSES)


def small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES)


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return make


def hugging_face(family: str, attention: str = "sdpa", **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config_class = getattr(transformers, family + "Config")
        head = "ForImageClassification" if family == "ViT" else "ForSequenceClassification"
        config = config_class(num_labels=CLASSES, attn_implementation=attention, **options)
        return getattr(transformers, family + head)(config)

    return make


class Encoder(nn.Module):
    """Registers its classifier before what runs before it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, CLASSES)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.embed = nn.Linear(3, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x.flatten(2).mT[:, :5])
        return self.head(self.encoder(hidden).mean(1))


slow = pytest.mark.slow


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": images()["x"]}


MODELS = {
    "torchvision resnet18": (torchvision_model("resnet18"), "fc", images),
    "torchvision mobilenet": (torchvision_model("mobilenet_v3_small", width_mult=0.25), "classifier.3", images),
    "torchvision densenet": (small_densenet, "classifier", images),
    "torchvision vit": (small_vit, "heads.head", images),
    "timm resnet": (timm_model("test_resnet"), "fc", images),
    "timm efficientnet": (timm_model("test_efficientnet"), "classifier", images),
    "timm convnext": (timm_model("test_convnext"), "head.fc", images),
    "timm vit": (timm_model("vit_tiny_patch16_224", img_size=32, depth=2), "head", images),
    "BERT": (hugging_face("Bert", **TEXT), "classifier", tokens),
    "BERT eager": (hugging_face("Bert", "eager", **TEXT), "classifier", tokens),
    "RoBERTa": (hugging_face("Roberta", **TEXT), "classifier.out_proj", tokens),
    "DistilBERT": (hugging_face("DistilBert", **DISTIL), "classifier", tokens),
    "ViT": (hugging_face("ViT", **VIT), "classifier", pixels),
    "TransformerEncoder": (Encoder, "head", images),
}
SLOW = ("resnet18",)


@pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[slow] * name.endswith(SLOW)) for name, case in MODELS.items()]
)
def test_it_is_taken_over_trains_and_predicts(case: Any) -> None:
    build, classifier, make_inputs = case
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = build(), make_inputs()
        plain_names = set(model.state_dict())
        method = SNGP(model, num_inducing=16, generator=generator())
        assert method.classifier_name == classifier
        targets = torch.tensor([0, 1, 2, 0])
        optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3, fused=True)
        method.train()
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(logits_of(method(**inputs)), targets).backward()
            optimizer.step()
    assert all(p.grad is not None for n, p in method.named_parameters() if p.requires_grad and "mask_token" not in n)
    method.fit_covariance({**inputs, "labels": targets})
    assert float(method.gp.laplace.num_seen) == 4
    bounded = [line for line in method.bounds() if not line.note]
    assert bounded
    assert all(line.sigma <= 1.01 * line.bound for line in bounded)
    prediction = method.predict({**inputs, "labels": targets}, batch_size=2)
    assert prediction.probs.shape == (4, CLASSES)
    assert bool((prediction.logit_variance > 0).all())
    assert torch.equal(prediction.targets, targets)
    method.eval()
    with torch.no_grad():
        probs = torch.softmax(logits_of(method(**inputs)), -1)
    torch.testing.assert_close(probs, method.predict(inputs).probs)
    assert method.predict(inputs, posterior="monte_carlo", num_samples=3).mutual_information.shape == (4,)
    # All names but the classifier's are those of the plain model.
    gone = plain_names - set(method.model.state_dict())
    assert gone == {f"{classifier}.weight", f"{classifier}.bias"} & plain_names


def test_gpt2_answers_from_its_last_token() -> None:
    method = SNGP(hugging_face("GPT2", **GPT)(), num_inducing=16, generator=generator(), kernel_scale=1.0)
    assert method.classifier_name == "score"
    method.fit_covariance(tokens())
    assert float(method.gp.laplace.num_seen) == 4
    assert method.predict(tokens()).probs.shape == (4, CLASSES)


class Sentences(Dataset[Any]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.randint(1, 50, (6,), generator=generator(index))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": index % CLASSES}


@slow
@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer_trains_and_evaluates_it(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    method = SNGP(hugging_face("Bert", **TEXT)(), num_inducing=16, generator=generator())
    before = method.gp.beta.detach().clone()
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        label_names=["labels"],
        eval_strategy="steps",
        eval_steps=1,
        save_steps=2,
    )
    trainer = Trainer(model=method, args=arguments, train_dataset=Sentences(), eval_dataset=Sentences())
    trainer.train()
    assert not torch.equal(method.gp.beta, before)
    assert method.covariance_state != "fitted"
    assert "eval_loss" in trainer.evaluate()
    method.fit_covariance(Sentences())
    assert float(method.gp.laplace.num_seen) == 10
    assert len(method.predict(Sentences())) == 10
    answered = torch.from_numpy(trainer.predict(Sentences()).predictions).softmax(-1)
    torch.testing.assert_close(answered, method.predict(Sentences()).probs)


@slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_it_and_validates_in_the_middle(tmp_path: Any) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.method = SNGP(
                nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)),
                num_inducing=16,
                generator=generator(),
            )

        def training_step(self, batch: Any, index: int) -> Tensor:
            return F.cross_entropy(self.method(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("nll", F.cross_entropy(self.method(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), fused=True)

    x = torch.randn(40, 4, generator=generator())
    data = TensorDataset(x, (x[:, 0] > 0).long())
    module = Module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(
            module,
            torch.utils.data.DataLoader(data, batch_size=10, shuffle=True),
            torch.utils.data.DataLoader(data, batch_size=10),
        )
    assert any("plain logits" in str(w.message) for w in caught)
    module.method.fit_covariance(data)
    (saved,) = tmp_path.rglob("*.ckpt")
    loaded = Module.load_from_checkpoint(saved)
    assert loaded.method.covariance_state == "none"
    loaded.method.fit_covariance(data)
    assert torch.equal(loaded.method.predict(data).probs, module.method.predict(data).probs)
