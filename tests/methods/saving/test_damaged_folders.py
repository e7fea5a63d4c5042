"""A folder that is foreign, damaged or changed leads to one clear error, and nothing of it runs."""

import json
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.saving.models import PATH, OwnNet, bert, fit_covariances, mlp, own, rows, seeded, sngp, timm_net
from tests.methods.saving.tampering import (
    change,
    config_of,
    pickled,
    put,
    retensor,
    rewrite,
    sign,
    torch_saved,
    weights_of,
)
from torch import nn

import hesitant
from hesitant import SNGP, DeepEnsemble, Deterministic, MCDropout
from hesitant.methods import SavedModelError

NETWORK = ("method", "model", "architecture")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    method = sngp(seeded(mlp))
    fit_covariances(method, rows())
    method.save_pretrained(tmp_path / "saved", label_names=["a", "b", "c"])
    return tmp_path / "saved"


def refused(folder: Path, match: str, **options: Any) -> str:
    """Answers the message of the error, which names a file of the folder."""
    with pytest.raises(SavedModelError, match=match) as raised:
        hesitant.load(folder, **options)
    assert str(folder) in str(raised.value)
    assert len(str(raised.value)) < 1500
    return str(raised.value)


# ---------------------------------------------------------------- what is no folder of hesitant


def test_no_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is no folder: name one that save_pretrained wrote")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is no folder")
    refused(tmp_path, "config.json is missing")


def test_a_plain_transformers_folder_says_what_it_is(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    refused(tmp_path, r"plain transformers model \(bert\).*from_pretrained.*hesitant.SNGP")


def test_a_plain_timm_folder_says_what_it_is(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    save_for_hf(timm_net("resnet18")(), str(tmp_path), safe_serialization=True)
    refused(tmp_path, r"plain timm model.*timm.create_model.*hesitant.SNGP")


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", '"hesitant"', "null", '{"format": "other"}', '{"format": ["hesitant"]}']
)
def test_json_of_something_else(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "was not written by hesitant")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b'{"format": "hesitant", "format": "hesitant"}', b'{"format": NaN}',
        b'{"format": 1e999}', b"[" * 100_000, b'{"a":' * 100_000, b'{"format_version": ' + b"9" * 10_000 + b"}",
    ],
)  # fmt: skip
def test_a_damaged_config(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config.json is damaged \(.*\): save the model again")


def test_a_config_that_is_far_too_large(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**34)  # takes no room on the disk
    refused(folder, "too large for a config")


def test_a_later_version_says_to_upgrade(folder: Path) -> None:
    put(folder, "format_version", value=2)
    put(folder, "versions", "hesitant", value="9.1")
    refused(folder, r"format_version 2.*upgrade hesitant to 9.1")


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None, [1]])
def test_a_version_that_is_none(version: Any, folder: Path) -> None:
    put(folder, "format_version", value=version)
    refused(folder, "format_version")


# ---------------------------------------------------------------- a config that was changed

PARTS: list[tuple[tuple[str | int, ...], Any]] = [
    (("weights",), None),
    (("weights",), {}),
    (("weights", "files"), {}),
    (("weights", "files"), []),
    (("weights", "shared"), {"a": 1}),
    (("weights", "shared"), {"temperature": "model.0.weight"}),
    (("weights", "shared"), {"model.0.weight": "nothing"}),
    (("weights", "frozen"), ["nothing"]),
    (("weights", "frozen"), [1]),
    (("weights", "strides"), {"model.0.weight": [2**40, 1]}),
    (("weights", "strides"), {"model.0.weight": [-1, 4]}),
    (("weights", "strides"), {"model.0.weight": [1]}),
    (("weights", "strides"), {"model.0.weight": [True, 1]}),
    (("label_names",), "cat"),
    (("label_names",), [1]),
    (("versions",), {"torch": 3}),
    (("policy",), 5),
    (("method",), None),
    (("method",), []),
    (("method",), {"architecture": {"kind": "torch", "name": "Linear", "arguments": {}}}),
    (("method", "method"), "Tempered"),
    (("method", "method"), "os.system"),
    (("method", "method"), ["SNGP"]),
    (("method", "method"), "MCDropout"),
    (("method", "options"), None),
    (("method", "options"), {}),
    (("method", "options", "generator"), 3),
    (("method", "options", "__class__"), "SNGP"),
    (("method", "options", "num_inducing"), 10**12),
    (("method", "options", "num_inducing"), 17),
    (("method", "options", "num_inducing"), -1),
    (("method", "options", "num_inducing"), "16"),
    (("method", "options", "num_inducing"), None),
    (("method", "options", "kernel_scale"), [1]),
    (("method", "options", "activation"), "os.system"),
    (("method", "options", "activation"), None),
    (("method", "options", "classifier"), "0"),
    (("method", "options", "classifier"), "nothing"),
    (("method", "options", "classifier"), None),
    (("method", "options", "classifier"), {"a": 1}),
    (("method", "options", "only"), ["nothing"]),
    (("method", "options", "norm_bound"), "all"),
    (("method", "options", "temperature"), 2.0),
    (("method", "options", "temperature"), 0),
    (("method", "options", "outputs"), "anything"),
    (("method", "options", "ood_score"), "knn"),
    (("method", "model"), None),
    (("method", "model"), {}),
    ((*NETWORK,), None),
    ((*NETWORK, "kind"), "pickle"),
    ((*NETWORK, "kind"), ["torch"]),
    ((*NETWORK, "name"), None),
    ((*NETWORK, "name"), "Module"),
    ((*NETWORK, "name"), "__init__"),
    ((*NETWORK, "arguments"), []),
    ((*NETWORK, "arguments"), {}),
    ((*NETWORK, "arguments", "layers"), 3),
    ((*NETWORK, "arguments", "layers"), [["0"]]),
    ((*NETWORK, "arguments", "layers", 0, 1, "arguments", "in_features"), 10**15),
    ((*NETWORK, "arguments", "layers", 0, 1, "arguments", "in_features"), 10**9),
    ((*NETWORK, "arguments", "layers", 0, 1, "arguments", "in_features"), 5),
    ((*NETWORK, "arguments", "layers", 0, 1, "arguments", "in_features"), "4"),
    ((*NETWORK, "arguments", "layers", 0, 0), "a.b"),
    ((*NETWORK, "head"), []),
]


@pytest.mark.parametrize(("path", "value"), PARTS, ids=[f"{'.'.join(map(str, p))}={v!r:.30}" for p, v in PARTS])
def test_a_part_of_the_config_that_was_changed(path: tuple[str | int, ...], value: Any, folder: Path) -> None:
    put(folder, *path, value=value)
    refused(folder, r"config\.json|model-\w+\.safetensors is damaged")


def test_a_part_that_is_missing_or_one_too_many(folder: Path) -> None:
    for part in config_of(folder):
        before = (folder / "config.json").read_text()
        change(folder, lambda config, part=part: config.pop(part))
        refused(folder, "config.json")
        (folder / "config.json").write_text(before)
    put(folder, "code", value="import os")
    refused(folder, "was changed")


def test_methods_nested_like_a_bomb(folder: Path) -> None:
    node = config_of(folder)["method"]["model"]
    options = {"vectorize": None, "temperature": 1.0, "outputs": "logits"}
    for _ in range(200):
        node = {"method": "DeepEnsemble", "options": options, "members": [node]}
    put(folder, "method", value=node)
    refused(folder, "nested too deeply")


def test_an_ensemble_of_as_many_members_as_a_bomb_has(folder: Path) -> None:
    node = config_of(folder)["method"]["model"]
    options = {"vectorize": None, "temperature": 1.0, "outputs": "logits"}
    put(folder, "method", value={"method": "DeepEnsemble", "options": options, "members": [node] * 100_000})
    refused(folder, "config.json")


def test_layers_nested_like_a_bomb(folder: Path) -> None:
    layer = {"kind": "torch", "name": "ReLU", "arguments": {}}
    for _ in range(100):
        layer = {"kind": "torch", "name": "Sequential", "arguments": {"layers": [["0", layer]]}}
    put(folder, *NETWORK, value=layer)
    refused(folder, "nested too deeply")


# ---------------------------------------------------------------- architectures that would take all memory, or all time


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**9), ("num_hidden_layers", 500_000), ("hidden_size", 10**9),
        ("hidden_size", 2**20), ("vocab_size", 10**12), ("max_position_embeddings", 10**6 * 9),
        ("num_labels", 10**10), ("num_attention_heads", 0), ("hidden_size", "16"), ("hidden_act", "os.system"),
        ("model_type", "gpt2"), ("id2label", 3),
    ],
)  # fmt: skip
def test_a_transformers_config_that_asks_for_too_much(name: str, value: Any, tmp_path: Path) -> None:
    Deterministic(seeded(bert)).save_pretrained(tmp_path)
    put(tmp_path, *NETWORK, "arguments", name, value=value)
    refused(tmp_path, "config.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [("depth", 10**9), ("depth", 10**6), ("embed_dim", 10**6), ("img_size", 10**6), ("num_classes", 10**9)],
)
def test_timm_arguments_that_ask_for_too_much(name: str, value: Any, tmp_path: Path) -> None:
    Deterministic(seeded(timm_net("vit_tiny_patch16_224", img_size=32, depth=1))).save_pretrained(tmp_path)
    put(tmp_path, *NETWORK, "arguments", name, value=value)
    refused(tmp_path, "config.json")


# ---------------------------------------------------------------- files


def names(folder: Path) -> list[str]:
    return list(config_of(folder)["weights"]["files"])


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/../../b", "..", "", ".", "a/b", "a\\b", "C:\\b", "a\0b", "é"]
)
def test_a_name_that_leads_out_of_the_folder(name: str, folder: Path) -> None:
    (folder.parent / "model.safetensors").write_bytes(weights_of(folder).read_bytes())
    entry = config_of(folder)["weights"]["files"].popitem()[1]
    put(folder, "weights", "files", value={name: entry})
    refused(folder, "config.json")


@pytest.mark.parametrize("what", ["config.json", "weights"])
def test_a_link_out_of_the_folder_is_not_followed(what: str, folder: Path) -> None:
    file = folder / what if what == "config.json" else weights_of(folder)
    outside = folder.parent / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    refused(folder, "is a link to .*outside, out of the folder")
    file.unlink()
    outside.rename(folder / "inside")
    file.symlink_to(folder / "inside")
    assert isinstance(hesitant.load(folder), SNGP)


def test_a_folder_that_is_reached_by_a_link_is_a_folder(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    assert isinstance(hesitant.load(folder.parent / "link"), SNGP)


def test_links_in_a_circle(folder: Path) -> None:
    weights = weights_of(folder)
    weights.unlink()
    weights.symlink_to(weights)
    refused(folder, "cannot be followed")


def test_what_is_no_regular_file(folder: Path) -> None:
    weights = weights_of(folder)
    weights.unlink()
    os.mkfifo(weights)
    refused(folder, "is no regular file")
    weights.unlink()
    weights.mkdir()
    refused(folder, "is no regular file")
    weights.rmdir()
    refused(folder, f"{weights.name} is missing")


def test_a_file_that_is_truncated_or_goes_on(folder: Path) -> None:
    content = weights_of(folder).read_bytes()
    for changed in (content[:-1], content[:4], b"", content + b"\0"):
        weights_of(folder).write_bytes(changed)
        refused(folder, f"has {len(changed)} bytes, and config.json says {len(content)}")


@pytest.mark.parametrize("place", [0, 7, 8, 50, -1, -4000])
def test_one_byte_that_is_flipped_is_seen_wherever_it_is(place: int, folder: Path) -> None:
    content = bytearray(weights_of(folder).read_bytes())
    content[place] ^= 1
    weights_of(folder).write_bytes(content)
    refused(folder, "does not have the SHA-256")


@pytest.mark.parametrize("place", [0, 1, 7, 8, 9, 50])
def test_a_header_that_was_changed_with_its_digest(place: int, folder: Path) -> None:
    content = bytearray(weights_of(folder).read_bytes())
    content[place] ^= 0xFF
    rewrite(folder, bytes(content))
    refused(folder, "is damaged, or holds no tensors")


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        with_header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        with_header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"\0" * 4),
        with_header({"a": {"dtype": "object", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header(b"[" * 100_000),
        with_header(b'{"a":' * 100_000),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        b"{}",
        b"PK\x03\x04" + b"\0" * 100,
    ],
    ids=lambda content: f"{content[:12].hex()}-{len(content)}",
)
def test_a_header_that_claims_what_cannot_be(content: bytes, folder: Path) -> None:
    rewrite(folder, content)
    refused(folder, "is damaged, or holds no tensors")


TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "missing": lambda t: t.pop("model.0.weight"),
    "besides": lambda t: t.update(more=torch.ones(3)),
    "wrong shape": lambda t: t.update({"model.0.weight": torch.ones(4, 8)}),
    "wrong width of the head": lambda t: t.update({"model.3.beta": torch.ones(16, 4)}),
    "no numbers of floating point": lambda t: t.update({"model.0.weight": torch.ones(8, 4, dtype=torch.int64)}),
    "an unknown state": lambda t: t.update({"model.3.laplace.state_code": torch.tensor(9, dtype=torch.uint8)}),
    "a covariance that is none": lambda t: t.update(
        {"model.3.laplace.data_precision": -torch.eye(16, dtype=torch.float64)}
    ),
    "a covariance of another size": lambda t: t.update(
        {"model.3.laplace.data_precision": torch.eye(8, dtype=torch.float64)}
    ),
    "a temperature below zero": lambda t: t.update(temperature=torch.tensor(-1.0, dtype=torch.float64)),
    "a temperature of several": lambda t: t.update(temperature=torch.ones(3, dtype=torch.float64)),
    "what was in no state dict": lambda t: t.pop("derived.model.3.drawn_bits"),
    "an extra of nobody": lambda t: t.update({"extra.model.9/weight": torch.ones(3)}),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_do_not_fit(what: str, folder: Path) -> None:
    retensor(folder, TENSORS[what])
    refused(folder, "the weights do not fit the network")


@pytest.mark.parametrize("value", [float("nan"), -float("nan")])
def test_nan_among_the_weights(value: float, folder: Path) -> None:
    retensor(folder, lambda tensors: tensors["model.0.weight"][3].fill_(value))
    refused(folder, r"model.0.weight holds NaN")


def test_a_tensor_in_two_files(folder: Path) -> None:
    content = weights_of(folder).read_bytes()
    (folder / "again.safetensors").write_bytes(content)
    files = config_of(folder)["weights"]["files"]
    put(folder, "weights", "files", value={**files, "again.safetensors": next(iter(files.values()))})
    refused(folder, "as another file does")


# ---------------------------------------------------------------- code


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    """A file that a payload would write."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a payload of the folder was executed"


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickled(tmp_path / "canary"))
    assert (tmp_path / "canary").exists()


def test_a_pickle_in_disguise_is_not_opened(folder: Path, canary: Path) -> None:
    for content in (pickled(canary), torch_saved(canary, folder.parent / "made.pt"), b"\0" * 8 + pickled(canary)):
        rewrite(folder, content)
        refused(folder, "is damaged, or holds no tensors")
    weights = weights_of(folder)
    (folder / "pytorch_model.bin").write_bytes(pickled(canary))
    entry = config_of(folder)["weights"]["files"][weights.name]
    put(folder, "weights", "files", value={"pytorch_model.bin": entry})
    sign(folder)
    refused(folder, "is damaged, or holds no tensors")


def test_an_own_class_is_imported_only_if_it_is_trusted_by_name(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Deterministic(seeded(OwnNet)).save_pretrained(tmp_path / "saved", architecture=own())
    (tmp_path / "evil_module.py").write_text(f"open({str(canary)!r}, 'w')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    put(tmp_path / "saved", *NETWORK, "name", value="evil_module.Net")
    for trust in ((), PATH, ["evil_module"], "evil_module.Other", ["evil_module.*", "*"], "evil_module.Net.x"):
        message = refused(tmp_path / "saved", "asks to import evil_module.Net, which runs", trust=trust)
        assert "trust='evil_module.Net'" in message
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("path", ["os.system", "builtins.exec", "builtins.eval", "subprocess.run", "pickle.loads"])
def test_a_function_of_the_library_is_code_too(path: str, tmp_path: Path, canary: Path) -> None:
    Deterministic(seeded(OwnNet)).save_pretrained(tmp_path / "saved", architecture=own())
    put(tmp_path / "saved", *NETWORK, "name", value=path)
    put(tmp_path / "saved", *NETWORK, "arguments", value={"command": f"touch {canary}"})
    refused(tmp_path / "saved", "asks to import")


@pytest.mark.parametrize("path", ["", "os", "os.", ".os.system", "os.system()", "a b.c", "__import__('os').system", 3])
def test_what_is_no_path(path: Any, tmp_path: Path) -> None:
    Deterministic(seeded(OwnNet)).save_pretrained(tmp_path, architecture=own())
    put(tmp_path, *NETWORK, "name", value=path)
    refused(tmp_path, "config.json")


def test_a_trusted_path_that_makes_no_network_or_is_not_there(tmp_path: Path) -> None:
    Deterministic(seeded(OwnNet)).save_pretrained(tmp_path, architecture=own())
    for path, match in (("builtins.dict", "makes a dict"), ("no_such_package.Net", "cannot be imported")):
        put(tmp_path, *NETWORK, "name", value=path)
        with pytest.raises(SavedModelError, match=match):
            hesitant.load(tmp_path, trust=path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends the test if anything opens a connection."""

    def connect(*_: Any, **__: Any) -> None:
        pytest.fail("something was fetched")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.create_connection", connect)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("kind", "name", "arguments"),
    [
        ("timm", "resnet18", {"checkpoint_path": "{bad}"}),
        ("timm", "resnet18", {"pretrained": True}),
        ("timm", "resnet18", {"pretrained": True, "pretrained_cfg": {"file": "{bad}"}}),
        ("timm", "resnet18", {"pretrained_cfg_overlay": {"file": "{bad}"}, "pretrained": True}),
        ("timm", "resnet18", {"pretrained_strict": False, "pretrained": True}),
        ("timm", "resnet18", {"cache_dir": "{bad}"}),
        ("timm", "hf-hub:evil/net", {}),
        ("timm", "hf_hub:evil/net", {}),
        ("timm", "local-dir:{folder}", {}),
        ("timm", "evil/net", {}),
        ("timm", "no_such_net", {}),
        ("torchvision", "resnet18", {"weights": "DEFAULT"}),
        ("torchvision", "resnet18", {"pretrained": True}),
        ("torchvision", "fcn_resnet50", {"weights_backbone": "DEFAULT"}),
        ("torchvision", "load_state_dict_from_url", {"url": "http://127.0.0.1/"}),
        ("torchvision", "__builtins__", {}),
        ("transformers", "AutoModel", {"model_type": "bert"}),
        ("transformers", "AutoModelForSequenceClassification", {"model_type": "bert"}),
        ("transformers", "pipeline", {"task": "text-classification"}),
        ("transformers", "Trainer", {}),
        ("transformers", "BertConfig", {"model_type": "bert"}),
        ("transformers", "PreTrainedModel", {"model_type": ""}),
        ("transformers", "utils.os", {}),
        ("transformers", "__class__", {}),
        ("transformers", "BertModel", {"model_type": "bert", "auto_map": {"AutoModel": "evil--code.Net"}}),
        ("transformers", "BertModel", {"model_type": "bert", "trust_remote_code": True}),
        ("transformers", "BertModel", {"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}),
        ("transformers", "BertModel", {"model_type": "bert", "attn_implementation": "evil/kernels"}),
        ("transformers", "BertModel", {"model_type": "bert", "_attn_implementation": "evil/kernels"}),
        ("transformers", "UperNetForSemanticSegmentation",
         {"model_type": "upernet", "use_pretrained_backbone": True, "backbone": "microsoft/resnet-50"}),
    ],
)  # fmt: skip
def test_a_library_is_given_nothing_that_makes_it_fetch_or_unpickle(
    kind: str, name: str, arguments: dict[str, Any], folder: Path, canary: Path
) -> None:
    bad = folder.parent / "bad.pth"
    torch_saved(canary, bad)
    text = json.dumps([name, arguments]).replace("{bad}", str(bad)).replace("{folder}", str(folder))
    name, arguments = json.loads(text)
    put(folder, *NETWORK, value={"kind": kind, "name": name, "arguments": arguments})
    refused(folder, "cannot be built")


@pytest.mark.usefixtures("offline")
def test_an_attention_that_would_be_fetched(tmp_path: Path) -> None:
    Deterministic(seeded(bert)).save_pretrained(tmp_path)
    for attention in ("evil/kernels", "kernels-community/flash-attn", "paged|sdpa", ["sdpa"], {"": "evil/kernels"}):
        put(tmp_path, *NETWORK, "attention", value=attention)
        refused(tmp_path, "attention is")


@pytest.mark.usefixtures("offline")
def test_code_that_lies_in_the_folder_is_not_run(tmp_path: Path, canary: Path) -> None:
    Deterministic(seeded(bert)).save_pretrained(tmp_path)
    for name in ("modeling_evil.py", "__init__.py", "conftest.py", "config.py"):
        (tmp_path / name).write_text(f"open({str(canary)!r}, 'w')")
    put(tmp_path, *NETWORK, "arguments", "auto_map", value={"AutoModel": "modeling_evil.Net"})
    refused(tmp_path, "auto_map")


# ---------------------------------------------------------------- a network that is given


def test_a_network_that_has_to_be_given_is_asked_for_by_name(tmp_path: Path) -> None:
    Deterministic(OwnNet()).save_pretrained(tmp_path, architecture={"kind": "given"})
    assert PATH in refused(tmp_path, "build it as it was before a method was around it, and load with model=net")
    method = DeepEnsemble([OwnNet(), MCDropout(OwnNet())])
    method.save_pretrained(tmp_path, architecture={"kind": "given"})
    refused(tmp_path, "model=net, a list of 2")
    refused(tmp_path, "2 of which have to be given, and model= gives 1", model=OwnNet())


def test_a_network_that_does_not_fit_is_told_by_names_and_shapes(folder: Path) -> None:
    wide = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Dropout(0.2), nn.Linear(9, 3))
    message = refused(folder, "the weights do not fit the network", model=wide)
    assert "model.0.weight is (9, 4) in the network and (8, 4) in the file" in message
    refused(folder, "there is no Linear '3'", model=nn.Sequential(nn.Linear(4, 3)))
    with pytest.raises(TypeError, match=r"is a SNGP: expected a torch.nn.Module as it was before"):
        hesitant.load(folder, model=sngp(mlp()))
