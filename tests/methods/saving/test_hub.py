"""Models on a hub: sent as one commit, fetched as files; nothing here opens a connection."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import transformers.utils.hub  # noqa: F401  whose annotations want the hub's own HfApi, before the fixture's
from tests.methods.saving.models import (
    PATH,
    OwnNet,
    assert_loads_as,
    fit_covariances,
    mlp,
    names_in,
    own,
    rows,
    seeded,
    sngp,
)

import hesitant
from hesitant import SNGP, Deterministic, MCDropout
from hesitant.methods import SavedModelError


class Hub:
    """A hub in a folder, whose snapshots are links to files elsewhere in the cache, as those of the real one are."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.cache = folder / "repository", folder / "cache" / "models--owner--name"
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def api(self, token: Any = None) -> "Hub":
        self.calls.append(("api", {"token": token}))
        return self

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, *, folder_path: Path, repo_id: str, delete_patterns: list[str], **options: Any) -> str:
        self.calls.append(("upload_folder", {"repo_id": repo_id, **options}))
        before = [p for p in self.repository.rglob("*") if p.is_file()] if self.repository.exists() else []
        relative = [str(p.relative_to(self.repository)) for p in before]
        for name in huggingface_hub.utils.filter_repo_objects(relative, allow_patterns=delete_patterns):
            (self.repository / name).unlink()
        shutil.copytree(folder_path, self.repository, dirs_exist_ok=True)
        return f"https://hub.invalid/{repo_id}/commit/1"

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        self.calls.append(("snapshot_download", {"repo_id": repo_id, **options}))
        snapshot, blobs = self.cache / "snapshots" / "1", self.cache / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        files = [str(p.relative_to(self.repository)) for p in self.repository.rglob("*") if p.is_file()]
        for place, name in enumerate(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns)):
            shutil.copyfile(self.repository / name, blobs / str(place))
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).symlink_to(blobs / str(place))
        return str(snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


class Files:
    name_or_path = "vocabulary"

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "vocab.txt").write_text("words")


def test_a_model_goes_to_a_hub_and_comes_back(hub: Hub) -> None:
    method = sngp(seeded(mlp))
    fit_covariances(method, rows())
    address = method.push_to_hub(
        "owner/name", private=True, token="secret", commit_message="first", label_names=["a"], preprocessing=Files()
    )
    assert address.startswith("https://hub.invalid/owner/name")
    assert hub.calls[0] == ("api", {"token": "secret"})
    assert hub.calls[1] == ("create_repo", {"repo_id": "owner/name", "private": True, "exist_ok": True})
    assert hub.calls[2][1]["commit_message"] == "first"
    loaded = SNGP.from_pretrained("owner/name", revision="main", local_files_only=True)
    assert hub.calls[-1][1] == {"repo_id": "owner/name", "revision": "main", "local_files_only": True}
    assert_loads_as(method, rows(), loaded)
    assert loaded.label_names == ["a"]
    assert (Path(loaded.preprocessing["folder"]) / "vocab.txt").read_text() == "words"
    # hesitant.load follows no link out of a folder, not even to that cache.
    with pytest.raises(SavedModelError, match="out of the folder"):
        hesitant.load(hub.cache / "snapshots" / "1")


def test_a_new_model_takes_the_place_of_the_old_one(hub: Hub) -> None:
    hub.repository.mkdir()
    (hub.repository / "README.md").write_text("mine")
    method = Deterministic(seeded(mlp))
    method.push_to_hub("owner/name", preprocessing=Files())
    first = names_in(hub.repository)
    method.push_to_hub("owner/name")
    files = [path.name for path in hub.repository.rglob("*") if path.is_file()]
    assert len(files) == 3
    assert set(files) & first == {"README.md", "config.json"}


def test_a_link_out_of_the_cache_is_not_followed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Deterministic(seeded(mlp)).push_to_hub("owner/name")
    Deterministic.from_pretrained("owner/name")
    (file,) = (hub.cache / "snapshots" / "1").glob("model-*")
    shutil.move(file.resolve(), tmp_path / "outside")
    file.unlink()
    file.symlink_to(tmp_path / "outside")
    snapshot = hub.cache / "snapshots" / "1"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    with pytest.raises(SavedModelError, match="out of the folder"):
        Deterministic.from_pretrained("owner/name")


def test_from_pretrained_reads_a_local_folder_and_is_of_its_class(tmp_path: Path) -> None:
    method = MCDropout(seeded(OwnNet), 3)
    method.save_pretrained(tmp_path, architecture=own())
    assert_loads_as(method, rows(), MCDropout.from_pretrained(tmp_path, trust=PATH))
    assert_loads_as(method, rows(), MCDropout.from_pretrained(tmp_path, model=OwnNet(), device="cpu"))
    with pytest.raises(SavedModelError, match=r"holds a MCDropout, not a SNGP: load it by hesitant.MCDropout"):
        SNGP.from_pretrained(tmp_path, trust=PATH)


def test_a_method_around_a_model_of_transformers_has_its_own_ways_and_not_the_models(hub: Hub) -> None:
    from tests.methods.saving.models import bert, tokens

    method = Deterministic(seeded(bert))
    method.push_to_hub("owner/name")  # that of the network would push the network
    assert_loads_as(method, tokens(), Deterministic.from_pretrained("owner/name"))


def test_the_hub_and_safetensors_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, hesitant; hesitant.SNGP, hesitant.load\n"
        "print([name for name in ('huggingface_hub', 'safetensors', 'timm', 'transformers') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Deterministic(seeded(mlp))
    method.save_pretrained(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'hesitant\[hub\]'"):
        SNGP.from_pretrained("owner/name")
    for module in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: method.save_pretrained(tmp_path / "new"), lambda: hesitant.load(tmp_path / "saved")):
        with pytest.raises(ImportError, match=r"pip install 'hesitant\[hub\]'"):
            call()
    assert names_in(tmp_path) == {"saved"}
