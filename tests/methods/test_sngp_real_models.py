"""SNGP on models that go on after their classifier or have several: what it says is about what they answer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.small_transformers import GPT, VIT
from torch import Tensor, nn

from hesitant import SNGP
from hesitant.methods.outputs import logits_of

CLASSES = 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(40, 4, generator=generator())


class GoesOn(nn.Module):
    """Two heads on a body, and what ``answer`` makes of them."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.classifier, self.other = nn.Linear(4, 8), nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        hidden = torch.relu(self.body(x))
        return self.answer(self.classifier(hidden), self.other(hidden))


def fitted(model: nn.Module, data: Any, **options: Any) -> SNGP:
    method = SNGP(model, num_inducing=32, generator=generator(), norm_bound=None, kernel_scale=4.0, **options)
    method.fit_covariance(data)
    return method


def agrees_with_itself(method: SNGP, inputs: Any) -> None:
    """Asserts that logits, their variance, the probabilities and the draws describe one answer."""
    prediction = method.predict(inputs)
    assert bool((prediction.logit_variance > 0).all())
    drawn = method.predict(inputs, posterior="monte_carlo", num_samples=4000)
    noise = torch.randn(4000, *prediction.logits.shape, generator=generator(1))
    expected = (prediction.logits + noise * prediction.logit_variance.sqrt()).softmax(-1).mean(0)
    torch.testing.assert_close(drawn.probs, expected, rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.logits, prediction.logits)
    torch.testing.assert_close(drawn.logit_variance, prediction.logit_variance)
    # Without the mean-field factor the answer is the softmax of the mean logits.
    method.gp.mean_field_factor = None
    plain = method.predict(inputs)
    torch.testing.assert_close(plain.logits, prediction.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.logits.softmax(-1), plain.probs, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# ---------------------------------------------------------------- what goes on after the classifier


@pytest.mark.parametrize(
    ("answer", "factor"),
    [
        (lambda a, b: a, 1.0),
        (lambda a, b: a.log_softmax(-1), 1.0),
        (lambda a, b: (a, b), 1.0),
        (lambda a, b: {"logits": a, "auxiliary": b}, 1.0),
        (lambda a, b: 3 * a, 9.0),
        (lambda a, b: (a + b) / 2, 0.25),
        (lambda a, b: 0.5 * a + b, 0.25),
        (lambda a, b: (3 * a + b).log_softmax(-1), 9.0),
    ],
)
def test_what_is_linear_after_the_classifier_is_carried_through(answer: Any, factor: float) -> None:
    model = GoesOn(answer)
    method = fitted(model, X)
    assert method.classifier_name == "classifier"
    gp_variance = method.gp.posterior(torch.relu(model.body(X))).variance
    torch.testing.assert_close(method.predict(X).logit_variance, factor * gp_variance, rtol=1e-3, atol=1e-6)
    agrees_with_itself(method, X)


def test_grouped_classes_have_the_variances_of_their_sums() -> None:
    mix = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    model = GoesOn(lambda a, b: a @ mix.T)
    method = fitted(model, X)
    gp_variance = method.gp.posterior(torch.relu(model.body(X))).variance
    torch.testing.assert_close(method.predict(X).logit_variance, gp_variance @ mix.T, rtol=1e-3, atol=1e-6)
    agrees_with_itself(method, X)


@pytest.mark.parametrize("answer", [lambda a, b: a.tanh(), lambda a, b: a * a.std(-1, keepdim=True), torch.maximum])
def test_what_is_not_linear_is_refused_and_still_answers(answer: Any) -> None:
    method = fitted(GoesOn(answer), X, classifier="classifier").eval()
    with pytest.raises(ValueError, match=r"variance of the answer: softmax\(model\(x\)\) is the predictive"):
        method.predict(X)
    with torch.no_grad():
        assert bool(logits_of(method(X)).isfinite().all())


def test_a_classifier_that_is_not_read_is_refused() -> None:
    method = fitted(GoesOn(lambda a, b: (a, b)), X, classifier="other")
    with pytest.raises(ValueError, match="does not depend on it"):
        method.predict(X)


# ---------------------------------------------------------------- the libraries


def images(size: int = 32) -> Tensor:
    return torch.randn(6, 3, size, size, generator=generator())


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (6, 8), generator=generator())
    mask = (torch.arange(8) < torch.tensor([8, 3, 5, 8, 6, 2]).unsqueeze(1)).long()
    return {"input_ids": torch.where(mask.bool(), ids, 0), "attention_mask": mask}


def whole_tokens() -> dict[str, Tensor]:
    """Answers sentences without padding, each with its one end."""
    ids = torch.randint(3, 50, (6, 8), generator=generator())
    ids[:, -1] = 2
    return {"input_ids": ids}


def timm_model(name: str, **options: Any) -> Any:
    import timm

    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)


def small_deit() -> Any:
    return timm_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, embed_dim=24)


def hugging_face(model: str, config: str, **options: Any) -> Any:
    import transformers

    settings = getattr(transformers, config)(num_labels=CLASSES, **options)
    return getattr(transformers, model)(settings)


def torchvision_model(name: str, **options: Any) -> Any:
    import torchvision.models

    return getattr(torchvision.models, name)(num_classes=CLASSES, **options)


WAV2VEC2 = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WAV2VEC2 |= {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
WAV2VEC2 |= {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
XLNET = {"vocab_size": 50, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}
BART = {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16}

MODELS: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "Wav2Vec2": (
        lambda: hugging_face("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **WAV2VEC2),
        "classifier",
        lambda: {"input_values": torch.randn(6, 400, generator=generator())},
    ),
    "DeiT": (
        lambda: hugging_face("DeiTForImageClassification", "DeiTConfig", **VIT),
        "classifier",
        lambda: {"pixel_values": images()},
    ),
    "DeiT with teacher": (
        lambda: hugging_face("DeiTForImageClassificationWithTeacher", "DeiTConfig", **VIT),
        "cls_classifier",
        lambda: {"pixel_values": images()},
    ),
    "XLNet": (lambda: hugging_face("XLNetForSequenceClassification", "XLNetConfig", **XLNET), "logits_proj", tokens),
    "Bart": (
        lambda: hugging_face("BartForSequenceClassification", "BartConfig", **BART),
        "classification_head.out_proj",
        whole_tokens,
    ),
    "GPT-2": (lambda: hugging_face("GPT2ForSequenceClassification", "GPT2Config", **GPT), "score", tokens),
    "timm deit, distilled": (small_deit, "head", images),
    "timm swin": (
        lambda: timm_model(
            "swin_tiny_patch4_window7_224",
            img_size=64,
            window_size=2,
            embed_dim=16,
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 1, 1),
        ),
        "head.fc",
        lambda: images(64),
    ),
    "torchvision googlenet": (
        lambda: torchvision_model("googlenet", init_weights=False, aux_logits=True),
        "fc",
        lambda: images(64),
    ),
    "torchvision inception_v3": (
        lambda: torchvision_model("inception_v3", init_weights=False, aux_logits=True),
        "fc",
        lambda: images(75),
    ),
    "torchvision vgg11": (lambda: torchvision_model("vgg11"), "classifier.6", images),
}
SLOW = ("inception_v3", "vgg11", "googlenet", "swin")


@pytest.mark.filterwarnings("ignore::hesitant.nn.SpectralBoundWarning")
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=name, marks=[pytest.mark.slow] * name.endswith(SLOW)) for name, c in MODELS.items()]
)
def test_its_classifier_is_found_and_the_answer_described(case: Any) -> None:
    build, classifier, make_inputs = case
    inputs = make_inputs()
    method = fitted(build(), inputs)
    assert method.classifier_name == classifier
    assert float(method.gp.laplace.num_seen) == 6
    agrees_with_itself(method, inputs)


@pytest.mark.parametrize("distilled", [False, True])
def test_the_head_of_a_distilled_deit_trains_in_both_of_its_modes(distilled: bool) -> None:
    model = small_deit()
    method = SNGP(model, num_inducing=16, generator=generator())
    model.set_distilled_training(distilled)
    before = method.gp.beta.detach().clone()
    method.train()
    logits_of(method(images())).square().sum().backward()
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    assert not torch.equal(method.gp.beta, before)
