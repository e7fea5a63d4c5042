"""MC dropout takes dropout's part in what a model does in training, and no other."""

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods.dropout.oracle import assert_same_distribution, generator
from tests.methods.small_transformers import GPT, TEXT
from torch import Tensor, nn
from torch.nn import functional as F

from hesitant import MCDropout

X = torch.randn(4, 6, generator=generator(1))
TINY = 1e-7  # a rate at which nothing is dropped


class Base(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.first, self.head, self.aux, self.p = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3), p
        self.layerdrop, self.sigma = 0.9, 3.0

    def hidden(self, x: Tensor) -> Tensor:
        return F.dropout(self.first(x).tanh(), self.p, self.training)


class LabelNoise(Base):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.hidden(x))
        if self.training:
            logits = logits + 3 * torch.randn_like(logits)
        return logits


class NoiseByRate(Base):
    def forward(self, x: Tensor) -> Tensor:
        sigma = self.sigma if self.training else 0.0
        return self.head(self.hidden(x)) + sigma * torch.randn(3)


class FlippedLabels(Base):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.hidden(x))
        training = self.training
        if training:
            flipped = torch.rand(len(x)) < 0.5
            logits[flipped] = -logits[flipped]
        return logits


class Auxiliary(Base):
    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x)
        if self.training:
            return self.aux(hidden), self.head(hidden)
        return self.head(hidden)


class Masked(Base):
    def mask(self, x: Tensor) -> Tensor:
        if self.training and self.p > 0:
            x = x.masked_fill(torch.rand(x.shape) < 0.5, 0.0)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.mask(x)))


class SkipsLayers(Base):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        for _ in range(2):
            skip_the_layer = self.training and bool(torch.rand([]) < self.layerdrop)
            if not skip_the_layer:
                hidden = hidden + hidden.sin()
        return self.head(hidden)


class AttentionBesideNoise(Base):
    """One class that reads the flag for both: each read has its own answer."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.first(x).reshape(len(x), 4, 2)
        out = F.scaled_dot_product_attention(q, q, q, dropout_p=self.p if self.training else 0.0).flatten(1)
        if self.training:
            out = out + torch.randn_like(out)
        return self.head(out)


BRANCHES = [LabelNoise, NoiseByRate, FlippedLabels, Auxiliary, Masked, SkipsLayers, AttentionBesideNoise]


def made(build: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def assert_tiny_rates_answer_as_eval_mode(model: nn.Module, inputs: Any, read: Callable[[Any], Tensor]) -> None:
    with torch.no_grad():
        expected = read(model(**inputs) if isinstance(inputs, dict) else model(inputs)).softmax(-1)
    for chunk_size in (None, 1):
        samples = MCDropout(model, num_samples=20, chunk_size=chunk_size).predict_samples(inputs)
        torch.testing.assert_close(samples, expected.expand_as(samples), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", BRANCHES)
def test_a_training_branch_that_is_no_dropout_is_not_taken(kind: Any) -> None:
    assert_tiny_rates_answer_as_eval_mode(made(lambda: kind(TINY)), X, lambda out: out)
    assert bool((MCDropout(made(lambda: kind(0.5)), num_samples=20).predict(X).class_std > 1e-4).all())


class DropsAndMore(Base):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.training:
            hidden = F.dropout(hidden, self.p) + torch.randn_like(hidden)
        return self.head(hidden)


def test_a_branch_that_drops_and_does_more_is_an_error_by_name() -> None:
    with pytest.raises(ValueError, match=r"DropsAndMore reads self\.training for dropout and for something else"):
        MCDropout(made(lambda: DropsAndMore(0.5)), num_samples=3).predict(X)


def test_code_without_a_source_is_told_from_its_names() -> None:
    names = {"nn": nn, "F": F, "torch": torch}
    body = "    def forward(self, x):\n        return F.linear(F.{} , self.weight)\n"
    for call, drops in (("dropout(x, .5, self.training)", True), ("rrelu(x, .1, .9, self.training)", False)):
        exec("class Sourceless(nn.Linear):\n" + body.format(call), names)
        method = MCDropout(made(lambda: names["Sourceless"](6, 3)), num_samples=10)  # type: ignore[operator]
        if drops:
            assert bool((method.predict(X).class_std > 0).all())
        else:
            with pytest.raises(ValueError, match="no dropout"):
                method.predict(X)


# ---------------------------------------------------------------- libraries


def hugging_face(name: str, **sizes: Any) -> Any:
    import transformers

    config = getattr(transformers, name.split("For")[0] + "Config")(num_labels=3, **sizes)
    return made(lambda: getattr(transformers, name)(config))


AUDIO = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8, 8),
    "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
}  # fmt: skip
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50,
    "max_position_embeddings": 32, "encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9,
}  # fmt: skip


def rates(rate: float, *names: str) -> dict[str, float]:
    return dict.fromkeys(names, rate)


TOKENS = {"input_ids": torch.randint(3, 50, (2, 6), generator=generator())}
TOKENS["input_ids"][:, -1] = 2  # the end of a sentence, which BART reads its answer at
BERT_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
HUGGING_FACE: dict[str, tuple[Callable[[float], Any], Any]] = {
    "Wav2Vec2": (
        lambda p: hugging_face(
            "Wav2Vec2ForSequenceClassification", **AUDIO, apply_spec_augment=True, mask_time_prob=0.9,
            mask_time_length=2, mask_time_min_masks=2, layerdrop=0.9,
            **rates(p, "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"),
        ),
        {"input_values": torch.randn(2, 600, generator=generator())},
    ),
    "BERT, sdpa": (
        lambda p: hugging_face("BertForSequenceClassification", **TEXT, attn_implementation="sdpa",
                               **rates(p, *BERT_RATES)),
        TOKENS,
    ),
    "BERT, eager": (
        lambda p: hugging_face("BertForSequenceClassification", **TEXT, attn_implementation="eager",
                               **rates(p, *BERT_RATES)),
        TOKENS,
    ),
    "GPT2": (
        lambda p: hugging_face("GPT2ForSequenceClassification", **GPT,
                               **rates(p, "resid_pdrop", "embd_pdrop", "attn_pdrop")),
        TOKENS,
    ),
    "DeBERTa": (
        lambda p: hugging_face("DebertaV2ForSequenceClassification", **TEXT,
                               **rates(p, *BERT_RATES, "pooler_dropout")),
        TOKENS,
    ),
    "BART": (
        lambda p: hugging_face("BartForSequenceClassification", **BART,
                               **rates(p, "dropout", "attention_dropout", "activation_dropout")),
        TOKENS,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(HUGGING_FACE))
def test_hugging_face_models_drop_and_do_nothing_else_of_training(name: str) -> None:
    build, inputs = HUGGING_FACE[name]
    assert_tiny_rates_answer_as_eval_mode(build(TINY), inputs, lambda out: out.logits)
    assert bool((MCDropout(build(0.4), num_samples=20).predict(inputs).class_std > 1e-5).all())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("distilled", [False, True])
def test_a_distilled_deit_answers_with_both_of_its_heads(distilled: bool) -> None:
    import timm

    def build(p: float) -> Any:
        model: Any = made(
            lambda: timm.create_model(
                "deit_tiny_distilled_patch16_224", img_size=32, depth=2, num_classes=3, pretrained=False,
                proj_drop_rate=p, attn_drop_rate=p,
            )
        )  # fmt: skip
        with torch.no_grad():
            model.head.weight.normal_(generator=generator())
            model.head_dist.weight.normal_(generator=generator(1))
        model.set_distilled_training(distilled)
        return model

    images = torch.randn(2, 3, 32, 32, generator=generator())
    assert_tiny_rates_answer_as_eval_mode(build(TINY), images, lambda out: out)
    assert bool((MCDropout(build(0.4), num_samples=20).predict(images).class_std > 1e-5).all())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_auxiliary_outputs_are_not_asked_for(name: str, size: int) -> None:
    import torchvision

    options = {"aux_logits": True, "init_weights": False, "num_classes": 3, "dropout": 0.3}
    model = made(lambda: getattr(torchvision.models, name)(**options))
    images = torch.randn(2, 3, size, size, generator=generator())
    method = MCDropout(model, num_samples=5).eval()
    assert torch.is_tensor(method(images))
    samples = MCDropout(model, num_samples=60).predict_samples(images)
    for module in model.modules():
        module.training = isinstance(module, nn.Dropout)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        assert_same_distribution(samples, torch.stack([model(images).softmax(-1) for _ in range(60)]))


# ---------------------------------------------------------------- as if alone


class Caches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))
        self.before: Tensor | None = None
        self.table: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.first(x), 0.5, self.training)
        if self.before is not None:
            hidden = hidden + self.before
        self.before = self.table[len(x)] = hidden
        self.mean.add_(hidden.mean(0))
        return self.head(hidden + self.mean)


@pytest.mark.parametrize("num_samples", [5, 40])
def test_a_pass_begins_as_the_model_was_whatever_passes_were_before(num_samples: int) -> None:
    model = made(Caches)
    samples = MCDropout(model, num_samples=num_samples).predict_samples(X, seed=0)
    assert model.before is None
    assert model.table == {}
    assert float(model.mean.abs().sum()) == 0
    last = MCDropout(model, num_samples=num_samples, chunk_size=1).predict_samples(X, seed=0)[-1]
    torch.testing.assert_close(samples[-1], last, rtol=1e-5, atol=1e-6)


def test_threads_on_one_model_in_training_mode_answer_as_alone() -> None:
    model = made(lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))).train()
    inputs = [X, 2 * X, -X, X.flip(0)]
    method = MCDropout(model, num_samples=6)
    expected = [method.predict(x, seed=i).probs for i, x in enumerate(inputs)]
    with torch.no_grad():
        plain = made(lambda: nn.Sequential(*model).eval())(X)
    model.train()
    wrong: list[Any] = []

    def ask(index: int) -> None:
        for _ in range(40):
            try:
                if not torch.equal(method.predict(inputs[index], seed=index).probs, expected[index]):
                    wrong.append(index)
            except Exception as error:
                wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    state = torch.get_rng_state()
    try:
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(X), plain)


def test_an_input_that_asks_the_same_method_meets_no_half_changed_model() -> None:
    method = MCDropout(made(lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))), num_samples=20)
    expected = method.predict(X).probs

    def asking() -> Any:
        for _ in range(2):
            assert torch.equal(method.predict(X).probs, expected)
            assert not method.model.training
            yield (X, torch.zeros(4).long())

    assert torch.equal(method.predict(asking()).probs[:4], expected)


@pytest.mark.parametrize("shape", ["(C, B)", "mean", "squeezed"])
def test_an_answer_without_a_row_for_each_input_is_refused(shape: str) -> None:
    class Answers(Base):
        def forward(self, x: Tensor) -> Tensor:
            logits = self.head(self.hidden(x))
            return {"(C, B)": logits.T, "mean": logits.mean(0, keepdim=True), "squeezed": logits.squeeze(0)}[shape]

    inputs = X[:1] if shape == "squeezed" else X
    for num_samples in (5, 40):
        with pytest.raises(ValueError, match="one row for each input"):
            MCDropout(made(lambda: Answers(0.5)), num_samples=num_samples).predict(inputs)
