"""The inside of `hesitant.Scorer`: columns read as a model's inputs, and folders that are loaded once in a process.

``InputColumns`` makes tensors of a batch's columns and says which rows are none; ``Loaded`` is what a folder holds,
``loaded_once`` keeps the last few of them for all copies of a scorer in a process. The scorer calls them, and no user.
"""

from hesitant.integrations.scoring.columns import BadInputs, BadRows, InputColumns, Inputs, as_columns, blank, taken
from hesitant.integrations.scoring.loading import Loaded, folder_digest, loaded_once

__all__ = [
    "BadInputs",
    "BadRows",
    "InputColumns",
    "Inputs",
    "Loaded",
    "as_columns",
    "blank",
    "folder_digest",
    "loaded_once",
    "taken",
]
