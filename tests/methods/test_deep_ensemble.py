"""How an ensemble is made, copied and called; what it predicts is in members/test_predict.py."""

import copy
import inspect
import io
import itertools
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.members.ensembles import CLASSES, X, ensemble_of, mlp
from torch import Tensor, nn
from torch.nn import functional as F

from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.methods.outputs import logits_of
from hesitant.nn.models import DeepResNet


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def sngp(**options: Any) -> SNGP:
    return SNGP(mlp(), num_inducing=16, kernel_scale=1.0, **options)


def timm_vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, img_size=32, depth=1)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES)


def bert(**options: Any) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(
        **sizes, vocab_size=50, max_position_embeddings=16, num_labels=CLASSES, pad_token_id=0, **options
    )
    return transformers.BertForSequenceClassification(config)


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(1, 50, (5, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


LIBRARIES = {"MLP": mlp, "timm ViT": timm_vit, "torchvision ViT": torchvision_vit, "BERT": bert, "SNGP": sngp}


def random_states() -> list[Any]:
    state = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), (state[1].tolist(), *state[2:])]


def saved_and_loaded(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# ---------------------------------------------------------------- members


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_parameter_that_the_model_draws_is_each_members_own(name: str) -> None:
    ensemble = DeepEnsemble.from_builder(LIBRARIES[name], 3)
    for first, second in itertools.combinations(ensemble.members, 2):
        others = dict(second.named_parameters())
        for key, value in first.named_parameters():
            one, other = value.detach(), others[key].detach()
            if float(one.std(correction=0)) == 0:  # the model starts it at a constant
                assert torch.equal(one, other), key
            else:  # but for the embedding of padding, which is 0
                assert int((one == other).sum()) <= (one.shape[1] if "word_embeddings" in key else 0), key


def test_the_token_and_the_positions_of_a_vit_differ_from_member_to_member() -> None:
    first, second = DeepEnsemble.from_builder(timm_vit, 2).members
    for name in ("cls_token", "pos_embed"):
        assert float(getattr(first, name).detach().std()) > 0
        assert not torch.equal(getattr(first, name), getattr(second, name))


def test_the_initialisation_is_the_models_own() -> None:
    """A BERT starts its matrices at N(0, 0.02^2), its biases at 0: no reset replaces that."""
    for member in DeepEnsemble.from_builder(bert, 2).members:
        embeddings = member.bert.embeddings.word_embeddings.weight.detach()
        assert float(embeddings[1:].std()) == pytest.approx(0.02, rel=0.1)
        assert embeddings[0].count_nonzero() == 0  # the padding's
        assert member.classifier.bias.count_nonzero() == 0


def test_frozen_random_layers_are_each_members_own_too() -> None:
    ensemble = ensemble_of(DeepResNet, 4, seed=7)
    frozen = [member.input_layer.weight for member in ensemble.members]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(frozen, 2))


def test_random_features_of_sngps_are_their_own() -> None:
    gps = [member.gp for member in DeepEnsemble.from_builder(sngp, 3).members]
    for first, second in itertools.combinations(gps, 2):
        for name in ("random_weight", "random_phase", "beta"):
            assert not (getattr(first, name) == getattr(second, name)).any(), name


def test_builders_that_draw_from_numpy_or_python_have_members_of_their_own_too() -> None:
    def build(draw: Callable[[], float]) -> nn.Module:
        layer = nn.Linear(1, 2)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(draw())
        return layer

    for draw in (random.random, np.random.rand):
        ensembles = [DeepEnsemble.from_builder(lambda draw=draw: build(draw), 3) for _ in range(2)]
        weights = [[float(m.weight.detach()[0]) for m in ensemble.members] for ensemble in ensembles]
        assert weights[0] == weights[1]
        assert len(set(weights[0])) == 3


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_seed_reproduces_the_members_and_the_first_of_few_are_the_first_of_many(name: str) -> None:
    sizes_and_seeds = ((2, 3), (4, 3), (2, 4))
    few, many, others = (DeepEnsemble.from_builder(LIBRARIES[name], n, seed=seed) for n, seed in sizes_and_seeds)
    for a, b, c in zip(few.members, many.members, others.members, strict=False):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_building_ignores_and_leaves_the_global_random_states() -> None:
    torch.manual_seed(1)
    first = ensemble_of(DeepResNet, 2)
    torch.manual_seed(2)
    before = random_states()
    second = ensemble_of(DeepResNet, 2)
    assert before == random_states()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_builder_that_fails_leaves_the_global_random_states_too() -> None:
    def fail() -> nn.Module:
        torch.rand(1), np.random.rand(), random.random()
        raise KeyError("a fault of the builder")

    before = random_states()
    with pytest.raises(KeyError, match="a fault of the builder"):
        DeepEnsemble.from_builder(fail, 2)
    assert before == random_states()


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_a_seed_out_of_its_range_raises(seed: Any) -> None:
    with pytest.raises(ValueError, match=f"seed={seed!r}"):
        DeepEnsemble.from_builder(mlp, 2, seed=seed)
    if seed is not None:
        with pytest.raises(ValueError, match=f"seed={seed!r}"):
            ensemble_of().predict(X, seed=seed)


@pytest.mark.parametrize("number", [0, -1, 2.0, True])
def test_a_number_of_members_out_of_its_range_raises(number: Any) -> None:
    with pytest.raises(ValueError, match=f"num_members={number!r}"):
        DeepEnsemble.from_builder(mlp, number)


def test_what_are_no_members_raises() -> None:
    net = mlp()
    with pytest.raises(ValueError, match="members is empty"):
        DeepEnsemble([])
    with pytest.raises(TypeError, match=r"members\[1\] is a str: expected a torch.nn.Module"):
        DeepEnsemble([net, "model"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="members is one Sequential: expected models"):
        DeepEnsemble(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)))
    with pytest.raises(ValueError, match=r"members\[2\] is members\[0\] once more"):
        DeepEnsemble([net, mlp(), net])
    with pytest.raises(ValueError, match=r"members\[1\] is members\[0\] once more"):
        DeepEnsemble.from_builder(lambda: net, 2)
    with pytest.raises(ValueError, match=r"members\[1\] is members\[0\] once more"):
        DeepEnsemble([MCDropout(net), MCDropout(net)])
    with pytest.raises(TypeError, match=r"members\[0\] is a NoneType"):
        DeepEnsemble.from_builder(lambda: None, 2)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match=r"build is a MLP: expected a function"):
        DeepEnsemble.from_builder(net, 2)


def test_members_may_come_from_any_iterable() -> None:
    nets = [mlp(), mlp()]
    for members in (nets, tuple(nets), iter(nets), nn.ModuleList(nets)):
        assert list(DeepEnsemble(members).members) == nets


# ---------------------------------------------------------------- forward


class Output(dict[str, Any]):
    """What models of transformers answer: a dict with attributes."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Answering(nn.Module):
    """A model that answers in one of the ways that classifiers do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(4, 1 if kind in ("single", "squeezed") else CLASSES)

    def forward(self, x: Tensor, scale: float = 1.0, *, labels: Tensor | None = None) -> Any:
        logits = self.linear(x * scale)
        if self.kind == "squeezed":
            return logits.squeeze(1)
        if self.kind == "softmax":
            return logits.softmax(-1)
        if self.kind == "tuple":
            return logits, "more"
        if self.kind == "dict":
            return {"logits": logits, "more": 1}
        if self.kind == "object":
            return Output(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)
        return logits


KINDS = ("plain", "single", "squeezed", "softmax", "tuple", "dict", "object")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in KINDS),
        *((kind, dtype) for kind in ("plain", "softmax") for dtype in (torch.float64, torch.bfloat16)),
    ],
)
def test_the_softmax_of_forward_is_the_predictive_distribution(kind: str, dtype: torch.dtype) -> None:
    ensemble, x = ensemble_of(lambda: Answering(kind)).to(dtype), X.to(dtype)
    ensemble.outputs = "probabilities" if kind == "softmax" else "logits"
    output = ensemble(x)
    assert type(output) is type(ensemble.members[0](x))
    logits = logits_of(output)
    assert logits.shape == logits_of(ensemble.members[0](x)).shape
    if kind in ("single", "squeezed"):
        logits = torch.stack([torch.zeros(len(X)), logits.flatten()], 1)
    # Probabilities in half precision sum to 1 within their rounding only.
    rounding = torch.finfo(dtype).eps / 4 if kind == "softmax" else 1e-6
    torch.testing.assert_close(
        logits.softmax(-1), ensemble.predict(x).probs, rtol=0, atol=max(1e-6, rounding), check_dtype=False
    )


def test_the_rest_of_an_output_is_the_first_members() -> None:
    assert ensemble_of(lambda: Answering("tuple"))(X)[1] == "more"
    assert ensemble_of(lambda: Answering("dict"))(X)["more"] == 1


def test_the_loss_is_that_of_the_mean() -> None:
    ensemble = ensemble_of(lambda: Answering("object"))
    targets = torch.arange(len(X)) % CLASSES
    assert ensemble(X).loss is None
    loss = ensemble(X, labels=targets).loss
    expected = -ensemble.predict(X).log_probs[torch.arange(len(X)), targets].mean()
    torch.testing.assert_close(loss, expected)


def test_hugging_face_models_answer_with_their_own_output() -> None:
    ensemble, batch = ensemble_of(bert), tokens()
    targets = torch.arange(5) % CLASSES
    output = ensemble(**batch, labels=targets)
    assert type(output) is type(ensemble.members[0](**batch))
    prediction = ensemble.predict(batch | {"labels": targets})
    torch.testing.assert_close(output.logits.softmax(-1), prediction.probs)
    torch.testing.assert_close(output.loss, -prediction.log_probs[torch.arange(5), targets].mean())
    assert ensemble(**batch).loss is None
    assert torch.equal(prediction.targets, targets)


@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_forward_keeps_what_a_probability_rounds(scale: float) -> None:
    ensemble = ensemble_of()
    logits = scale * X[:, :CLASSES]
    for member in ensemble.members:
        member.forward = lambda x: logits
    expected = torch.log_softmax(logits, -1)
    torch.testing.assert_close(torch.log_softmax(ensemble(X), -1), expected)
    torch.testing.assert_close(ensemble.predict(X).log_probs, expected)


def test_in_training_mode_forward_raises_and_says_what_to_do() -> None:
    ensemble = ensemble_of().train()
    with pytest.raises(RuntimeError, match=r"hesitant.fit\(ensemble, data\).*ensemble.eval\(\)"):
        ensemble(X)
    assert ensemble.predict(X).probs.shape == (len(X), CLASSES)
    assert all(module.training for module in ensemble.modules())


def test_forward_keeps_the_signature_of_the_first_member() -> None:
    ensemble = ensemble_of(lambda: Answering("plain"))
    for other in (ensemble, copy.deepcopy(ensemble), saved_and_loaded(ensemble)):
        assert inspect.signature(other.forward) == inspect.signature(Answering("plain").forward)
    torch.testing.assert_close(ensemble(x=X, scale=2.0), ensemble(2 * X))


def test_gradients_reach_every_member_and_the_input() -> None:
    ensemble, x = ensemble_of(), X.clone().requires_grad_()
    ensemble(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is not None for parameter in ensemble.parameters())


def test_no_input_makes_no_output() -> None:
    assert ensemble_of()(X[:0]).shape == (0, CLASSES)


def test_a_compiled_ensemble_answers_as_the_plain_one() -> None:
    ensemble = ensemble_of()
    compiled = torch.compile(ensemble, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), ensemble(X))


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize(
    ("kind", "copied"),
    [
        (None, copy.deepcopy),
        (None, lambda e: pickle.loads(pickle.dumps(e))),
        (Deterministic, copy.deepcopy),
        (MCDropout, copy.deepcopy),
        (MCDropout, saved_and_loaded),
    ],
)
def test_a_copy_answers_alike_and_lives_by_itself(kind: Any, copied: Any) -> None:
    ensemble = ensemble_of(mlp if kind is None else lambda: kind(mlp()))
    before = ensemble.predict(X, seed=0).probs
    other = copied(ensemble)
    assert torch.equal(other.predict(X, seed=0).probs, before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    torch.testing.assert_close(other(X).softmax(-1), torch.full((len(X), CLASSES), 1 / CLASSES))
    assert torch.equal(ensemble.predict(X, seed=0).probs, before)


def test_a_state_dict_takes_all_members_to_another_ensemble() -> None:
    ensemble, other = ensemble_of(seed=0), ensemble_of(seed=1)
    state = ensemble.state_dict()
    assert set(state) == {f"members.{i}.{key}" for i in range(3) for key in mlp().state_dict()}
    assert not torch.equal(other.predict(X).probs, ensemble.predict(X).probs)
    other.load_state_dict(state)
    assert torch.equal(other.predict(X).probs, ensemble.predict(X).probs)
    alone = mlp()
    alone.load_state_dict(ensemble.members[1].state_dict())
    assert torch.equal(alone.eval()(X), ensemble.members[1](X))


def test_forward_is_the_distribution_that_predict_answers_with_seed_0() -> None:
    """Members of MC dropout draw masks of their own there too."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    twins = [MCDropout(copy.deepcopy(net), num_samples=5) for _ in range(3)]
    for ensemble in (DeepEnsemble(twins), DeepEnsemble([DeepEnsemble(twins[:2]), twins[2]])):
        ensemble.eval()
        probs = ensemble.predict(x, seed=0).probs
        torch.testing.assert_close(ensemble(x).softmax(-1), probs)
        samples = ensemble.predict_samples(x, seed=0)
        assert not torch.allclose(samples[0], samples[1])
