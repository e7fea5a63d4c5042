"""`hesitant.Scorer` of a folder with a tokenizer: texts in."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import hesitant
from hesitant import Scorer
from hesitant.integrations.scorer import BadInputs, BadRows

TEXTS = ["a b", "c", "a c b d", "b", "d d d a b c", "unheard of"]
MOST_TOKENS = 12


def tokenizer() -> Any:
    """Answers a tokenizer of five words."""
    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcd"])}, "[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=MOST_TOKENS, **special)


@pytest.fixture(scope="module")
def model() -> Any:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hesitant.Deterministic(
            BertForSequenceClassification(
                BertConfig(vocab_size=8, max_position_embeddings=MOST_TOKENS, num_labels=3, **size)
            )
        )


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored") / "model"
    model.save_pretrained(folder, preprocessing=tokenizer(), label_names=["x", "y", "z"])
    return folder


def expected(model: Any, *texts: list[str]) -> Any:
    """Answers the probabilities of texts, or of pairs, one by one."""
    words = tokenizer()
    return np.concatenate(
        [model.predict(dict(words(*row, return_tensors="pt"))).probs for row in zip(*texts, strict=True)]
    )


def test_texts_are_read_as_the_tokenizer_reads_them(model: Any, folder: Path) -> None:
    arrays = {
        "objects": np.array(TEXTS, dtype=object),
        "characters": np.array(TEXTS),
        "a list": TEXTS,
        "a series": pd.Series(TEXTS),
    }
    for kind, column in arrays.items():
        answers = Scorer(folder, inputs="text", keep=["id"])({"id": range(6), "text": column})
        np.testing.assert_allclose(answers["probs"], expected(model, TEXTS), atol=1e-6, err_msg=kind)
    alone = Scorer(folder)({"text": TEXTS})  # the only column
    np.testing.assert_array_equal(alone["probs"], answers["probs"])


def test_two_columns_are_pairs_of_texts(model: Any, folder: Path) -> None:
    scorer = Scorer(folder, inputs=("premise", "hypothesis"), outputs=["probs"])
    answers = scorer({"hypothesis": TEXTS[::-1], "premise": TEXTS})
    long = model.predict(dict(tokenizer()(TEXTS, TEXTS[::-1], truncation=True, padding=True, return_tensors="pt")))
    np.testing.assert_allclose(answers["probs"], long.probs, atol=1e-6)
    with pytest.raises(BadInputs, match="expected one, or two"):
        Scorer(folder, inputs=("a", "b", "c"))({"a": TEXTS, "b": TEXTS, "c": TEXTS})


def test_columns_of_tokens_are_arguments(model: Any, folder: Path) -> None:
    tokens = {name: column.numpy() for name, column in tokenizer()(TEXTS, padding=True, return_tensors="pt").items()}
    answers = Scorer(folder)({**tokens, "id": range(6)})
    np.testing.assert_allclose(answers["probs"], expected(model, TEXTS), atol=1e-6)
    tokens["input_ids"][4, 1] = 99  # a word that the model does not have
    with pytest.raises(BadRows, match="row 4: index out of range"):
        Scorer(folder)(tokens)
    marked = Scorer(folder, bad_rows="mark")(tokens)
    assert [row for row, error in enumerate(marked["error"]) if error] == [4]
    others = [0, 1, 2, 3, 5]
    np.testing.assert_allclose(marked["probs"][others], expected(model, TEXTS)[others], atol=1e-6)


def test_a_text_longer_than_the_model_takes_is_cut_off(model: Any, folder: Path) -> None:
    long, cut = ["a b " * 50], ["a b " * 5]
    np.testing.assert_allclose(Scorer(folder)({"text": long})["probs"], expected(model, cut), atol=1e-6)


@pytest.mark.parametrize("value", [None, 3, np.nan, ["a"]], ids=str)
def test_what_is_no_text_is_a_bad_row(model: Any, folder: Path, value: Any) -> None:
    column = np.array(TEXTS, dtype=object)
    column[2] = value
    with pytest.raises(BadRows, match=r"row 2 of column 'text' is .*, expected a text"):
        Scorer(folder)({"text": column})
    marked = Scorer(folder, bad_rows="mark")({"text": column})
    others = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(marked["probs"][others], expected(model, TEXTS)[others], atol=1e-6)
    assert marked["label"][2] == -1
    assert Scorer(folder)({"text": []})["probs"].shape == (0, 3)


def test_threads_share_the_tokenizer(folder: Path) -> None:
    scorer = Scorer(folder, outputs=["probs"])
    batches = [{"text": TEXTS[: 1 + place % 6] * (1 + place % 3)} for place in range(60)]
    alone = [scorer(batch)["probs"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: scorer(batch)["probs"], batches))
    assert all((one == other).all() for one, other in zip(alone, together, strict=True))
