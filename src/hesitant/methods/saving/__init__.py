"""Saves a model in a folder, and reads such a folder as if anyone had made it. Only the methods call it.

``saved_method`` is what every method has of it: ``save_pretrained``. A folder (``folder``) holds ``config.json``, which
commits a save by its coming, and tensors (``tensors``); ``architectures`` tells how a network is built, and builds it.
Nothing of a folder is executed. What is loaded is put together by ``hesitant.methods.loading``.
"""

from hesitant.methods.saving.architectures import Head, Limits, build, require_architecture
from hesitant.methods.saving.checking import require_config
from hesitant.methods.saving.failure import ArchitectureWarning, SavedModelError, naming
from hesitant.methods.saving.folder import CONFIG, SavedFolder
from hesitant.methods.saving.outline import outline_digest
from hesitant.methods.saving.preprocessing import read_preprocessing
from hesitant.methods.saving.saved_method import SavedMethod
from hesitant.methods.saving.tensors import DERIVED, DETECTOR, EXTRA, SavedTensors, read_tensors
from hesitant.methods.saving.writing import SavedDetector

__all__ = [
    "CONFIG",
    "DERIVED",
    "DETECTOR",
    "EXTRA",
    "ArchitectureWarning",
    "Head",
    "Limits",
    "SavedDetector",
    "SavedFolder",
    "SavedMethod",
    "SavedModelError",
    "SavedTensors",
    "build",
    "naming",
    "outline_digest",
    "read_preprocessing",
    "read_tensors",
    "require_architecture",
    "require_config",
]
