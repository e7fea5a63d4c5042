"""What is done to raw inputs is saved with the model, and read as JSON after loading."""

from pathlib import Path
from typing import Any

import pytest
from tests.methods.saving.models import bert, mlp, names_in, seeded, timm_net
from tests.methods.saving.tampering import config_of, put

import hesitant
from hesitant import Deterministic
from hesitant.methods import SavedModelError


def tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizerFast

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "this"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast.from_pretrained(str(folder))


def test_a_tokenizer_is_saved_with_files_of_its_own(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    given = tokenizer(tmp_path / "vocabulary")
    Deterministic(bert()).save_pretrained(tmp_path / "saved", preprocessing=given)
    loaded: Any = hesitant.load(tmp_path / "saved")
    said = loaded.preprocessing
    assert said["class"] == type(given).__name__
    assert said["name"] == str(tmp_path / "vocabulary")
    again = AutoTokenizer.from_pretrained(said["folder"])
    assert again("what is this")["input_ids"] == given("what is this")["input_ids"]
    # A model that was loaded is saved elsewhere with it, and then stands alone.
    loaded.save_pretrained(tmp_path / "elsewhere")
    Deterministic(mlp()).save_pretrained(tmp_path / "saved")
    elsewhere: Any = hesitant.load(tmp_path / "elsewhere")
    assert Path(elsewhere.preprocessing["folder"]).parent == tmp_path / "elsewhere"
    again = AutoTokenizer.from_pretrained(elsewhere.preprocessing["folder"])
    assert again("what is this")["input_ids"] == given("what is this")["input_ids"]
    with pytest.raises(ValueError, match="which is there no longer: pass the tokenizer itself"):
        loaded.save_pretrained(tmp_path / "too late")


def test_an_image_processor_is_too(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, ViTImageProcessor

    given = ViTImageProcessor(size={"height": 32, "width": 32})
    Deterministic(mlp()).save_pretrained(tmp_path, preprocessing=given)
    loaded: Any = hesitant.load(tmp_path)
    again = AutoImageProcessor.from_pretrained(loaded.preprocessing["folder"])
    assert dict(again.size) == dict(given.size)


def test_the_data_config_of_timm_comes_back_as_it_is(tmp_path: Path) -> None:
    import timm

    network = seeded(timm_net("resnet18"))
    said = timm.data.resolve_model_data_config(network)
    Deterministic(network).save_pretrained(tmp_path, preprocessing=said)
    loaded: Any = hesitant.load(tmp_path)
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in loaded.preprocessing.items()} == said
    assert timm.data.create_transform(**loaded.preprocessing) is not None
    # The network that is built again says the same of itself.
    assert timm.data.resolve_model_data_config(loaded.model) == said


def test_a_preset_of_torchvision_or_the_name_of_weights(tmp_path: Path) -> None:
    from torchvision.models import ResNet18_Weights

    weights = ResNet18_Weights.IMAGENET1K_V1
    method = Deterministic(mlp())
    method.save_pretrained(tmp_path, preprocessing=weights.transforms())
    loaded: Any = hesitant.load(tmp_path)
    assert loaded.preprocessing["class"] == "ImageClassification"
    assert loaded.preprocessing["crop_size"] == [224]
    assert loaded.preprocessing["mean"] == [0.485, 0.456, 0.406]
    assert "BILINEAR" in loaded.preprocessing["interpolation"]
    method.save_pretrained(tmp_path, preprocessing=weights)
    assert hesitant.load(tmp_path).preprocessing == "ResNet18_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize("said", ["lower case", {"mean": [0.1]}, [1, 2], 3.5, None])
def test_anything_of_json_stays_what_it_is(said: Any, tmp_path: Path) -> None:
    method = Deterministic(mlp())
    method.save_pretrained(tmp_path, preprocessing=said)
    loaded = hesitant.load(tmp_path)
    assert loaded.preprocessing == said
    loaded.save_pretrained(tmp_path)
    assert hesitant.load(tmp_path).preprocessing == said


@pytest.mark.parametrize("said", [lambda x: x, {"mean": lambda x: x}, float("nan"), object()])
def test_code_is_not_saved(said: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"preprocessing is a .* that cannot be saved"):
        Deterministic(mlp()).save_pretrained(tmp_path, preprocessing=said)
    assert names_in(tmp_path) == set()


def test_files_of_the_preprocessing_are_looked_at_like_all_others(tmp_path: Path) -> None:
    given = tokenizer(tmp_path / "vocabulary")
    folder = tmp_path / "saved"
    Deterministic(bert()).save_pretrained(folder, preprocessing=given)
    said = config_of(folder)["preprocessing"]
    file = folder / said["folder"] / "tokenizer.json"
    before = file.read_bytes()
    file.write_bytes(before.replace(b"what", b"that"))
    with pytest.raises(SavedModelError, match=r"tokenizer.json does not have the SHA-256"):
        hesitant.load(folder)
    file.unlink()
    with pytest.raises(SavedModelError, match=r"tokenizer.json is missing"):
        hesitant.load(folder)
    (tmp_path / "outside").write_bytes(before)
    file.symlink_to(tmp_path / "outside")
    with pytest.raises(SavedModelError, match="out of the folder"):
        hesitant.load(folder)
    for name in ("../vocabulary", "/etc", "", "..", 3, None):
        put(folder, "preprocessing", "folder", value=name)
        with pytest.raises(SavedModelError, match=r"config\.json"):
            hesitant.load(folder)
    put(folder, "preprocessing", value={**said, "files": {"../../vocabulary/vocab.txt": {"sha256": "", "bytes": 1}}})
    with pytest.raises(SavedModelError, match="expected a plain name"):
        hesitant.load(folder)
    put(folder, "preprocessing", value={**said, "files": {"vocab.txt": 3}})
    with pytest.raises(SavedModelError, match=r"missing|bytes"):
        hesitant.load(folder)
