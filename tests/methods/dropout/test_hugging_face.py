"""MC dropout on the models of Hugging Face, at their smallest; nothing is downloaded."""

from typing import Any

import pytest
import torch
from tests.methods.dropout.oracle import (
    assert_same_distribution,
    generator,
    operations,
    plain_passes,
)
from tests.methods.small_transformers import DISTIL, GPT, TEXT, VIT
from torch import Tensor, nn

from hesitant import MCDropout

CLASSES = 3
slow = pytest.mark.slow


def tokens() -> dict[str, Tensor]:
    """Three texts of 6, 4 and 3 tokens, padded."""
    ids = torch.randint(2, 50, (3, 6), generator=generator())
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
    return {"input_ids": ids * mask, "attention_mask": mask}


def pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(3, 3, 32, 32, generator=generator())}


# The model, its sizes, and each of its kinds of dropout; all are 0 but the one under test.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "Bert": (TEXT, ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")),
    "Roberta": (TEXT, ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")),
    "DistilBert": (DISTIL, ("dropout", "attention_dropout", "seq_classif_dropout")),
    "GPT2": (GPT, ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
    "ViT": (VIT, ("hidden_dropout_prob", "attention_probs_dropout_prob")),
}
ATTENTIONS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def hugging_face(family: str, attention: str, rates: dict[str, float]) -> Any:
    import transformers

    sizes, kinds = FAMILIES[family]
    head = "ForImageClassification" if family == "ViT" else "ForSequenceClassification"
    config = getattr(transformers, family + "Config")(
        num_labels=CLASSES, attn_implementation=attention, **sizes, **{kind: rates.get(kind, 0.0) for kind in kinds}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return distinct(getattr(transformers, family + head)(config))


def distinct(model: Any) -> Any:
    """The model with weights large enough for its dropout to matter, as if trained."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.std() < 0.1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model.eval()


def inputs_of(family: str) -> dict[str, Tensor]:
    return pixels() if family == "ViT" else tokens()


# Of two ways to attend, what does not drop there needs one; Roberta's layers are those of BERT.
each_dropout = pytest.mark.parametrize(
    ("family", "kind", "attention"),
    [
        (family, kind, attention)
        for family, (_, kinds) in FAMILIES.items()
        for kind in (kinds if family != "Roberta" else ("classifier_dropout",))
        for attention in (("sdpa", "eager") if kind in ATTENTIONS else ("sdpa",))
    ],
)
both_attentions = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@each_dropout
def test_each_dropout_of_hugging_face_answers_as_in_the_plain_loop(family: str, kind: str, attention: str) -> None:
    model, inputs = hugging_face(family, attention, {kind: 0.4}), inputs_of(family)
    assert bool((MCDropout(model, num_samples=30).predict(inputs, seed=0).class_std > 1e-5).all())
    samples = MCDropout(model, num_samples=150).predict_samples(inputs, seed=0)
    assert_same_distribution(samples, plain_passes(model, inputs, 150))


@each_dropout
def test_each_dropout_of_hugging_face_is_shared(family: str, kind: str, attention: str) -> None:
    model = hugging_face(family, attention, {kind: 0.4})
    inputs = {name: x[1:2].repeat(5, *[1] * (x.ndim - 1)) for name, x in inputs_of(family).items()}
    method = MCDropout(model, num_samples=10, masks="shared")
    samples = method.predict_samples(inputs, seed=0, batch_size=2)
    torch.testing.assert_close(samples, samples[:, :1].expand_as(samples), rtol=1e-4, atol=1e-5)
    assert bool((samples.std(0) > 1e-5).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_without_dropout_raises(family: str) -> None:
    with pytest.raises(ValueError, match=r"[Dd]ropout"):
        MCDropout(hugging_face(family, "sdpa", {}), num_samples=3).predict(inputs_of(family))


@both_attentions
def test_all_dropouts_of_bert_together_answer_as_in_the_plain_loop(attention: str) -> None:
    model = hugging_face("Bert", attention, dict.fromkeys(FAMILIES["Bert"][1], 0.2))
    for chunk_size in (None, 13):
        samples = MCDropout(model, num_samples=150, chunk_size=chunk_size).predict_samples(tokens(), seed=0)
        assert_same_distribution(samples, plain_passes(model, tokens(), 150))


def test_padding_changes_nothing_but_the_draws() -> None:
    model = hugging_face("Bert", "sdpa", dict.fromkeys(FAMILIES["Bert"][1], 0.2))
    short = {name: x[2:, :3] for name, x in tokens().items()}
    padded = {name: x[2:] for name, x in tokens().items()}
    samples = [MCDropout(model, num_samples=500).predict_samples(inputs, seed=0) for inputs in (short, padded)]
    assert_same_distribution(*samples)


def test_texts_of_other_lengths_have_masks_of_their_own_and_cannot_share_them() -> None:
    model = hugging_face("Bert", "eager", dict.fromkeys(FAMILIES["Bert"][1], 0.2))
    several = [{name: x[:, :length] for name, x in tokens().items()} for length in (6, 3)]
    assert len(MCDropout(model, num_samples=3).predict(iter(several))) == 6
    with pytest.raises(ValueError, match="length"):
        MCDropout(model, num_samples=3, masks="shared").predict(iter(several))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_hugging_face_outputs_keep_their_type_in_eval_mode(family: str) -> None:
    kinds, inputs = FAMILIES[family][1], inputs_of(family)
    method: Any = MCDropout(hugging_face(family, "eager", dict.fromkeys(kinds, 0.2)), num_samples=10).eval()
    answer = method(**inputs)
    assert type(answer) is type(method.model(**inputs))
    torch.testing.assert_close(answer.logits.softmax(-1), method.predict(inputs, seed=0).probs)
    labels = torch.tensor([0, 1, 2])
    loss = method(**inputs, labels=labels).loss
    torch.testing.assert_close(loss, nn.functional.nll_loss(method.predict(inputs, seed=0).log_probs, labels))
    assert torch.equal(method.predict({**inputs, "labels": labels}).targets, labels)


def test_only_the_classifier_of_bert_runs_again_where_it_alone_drops() -> None:
    model = hugging_face("Bert", "sdpa", {"classifier_dropout": 0.3})
    once = operations(lambda: model(**tokens()))
    again = operations(lambda: model.classifier(torch.zeros(3, 16)))
    used = operations(lambda: MCDropout(model, num_samples=50).predict(tokens(), seed=0))
    assert used <= once + 50 * again  # one runs twice, alone and among others


@slow
@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer_evaluates_it(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    rows = [{name: x[i] for name, x in tokens().items()} | {"labels": i} for i in range(3)]
    method = MCDropout(hugging_face("Bert", "sdpa", dict.fromkeys(FAMILIES["Bert"][1], 0.2)), num_samples=10)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, label_names=["labels"]
    )
    trainer = Trainer(model=method, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    answered = torch.from_numpy(trainer.predict(rows).predictions).softmax(-1)
    torch.testing.assert_close(answered, method.predict(tokens(), seed=0).probs)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        float(-method.predict(tokens(), seed=0).log_probs[range(3), range(3)].mean()), rel=1e-4
    )
