"""A saved model on a hub: sent up as one commit, and fetched as files that are read like any other folder's."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hesitant.methods.saving.folder import CONFIG

__all__ = ["fetched", "sent"]

_OWN: Final = [CONFIG, "model-*.safetensors", "preprocessing-*"]


def sent(save: Callable[[Path], None], repo_id: str, *, private: bool | None, token: Any, **commit: Any) -> str:
    """Sends what ``save`` writes into a folder to a repository, and answers the address of the commit.

    It is one commit, which also takes the files of the model that was there away.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        api = hub.HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(folder_path=folder, repo_id=repo, delete_patterns=_OWN[1:], **commit))


def fetched(repo_id: str, **options: Any) -> tuple[Path, Path]:
    """Answers the folder of a repository's files, and the one in which all that these are links to lies.

    Raises:
        ImportError: huggingface_hub is not installed.
    """
    patterns = [*_OWN, "preprocessing-*/*"]
    folder = Path(_hub().snapshot_download(repo_id, allow_patterns=patterns, **options))
    # A snapshot's files are links to those of the repository's cache.
    return folder, folder.parent.parent if folder.parent.name == "snapshots" else folder


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("a hub needs huggingface_hub: pip install 'hesitant[hub]'") from error
    return huggingface_hub
