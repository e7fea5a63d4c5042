"""Files: written whole or not at all, and read as if anyone had made them.

``replacing`` gives a file that takes its place when all is written; ``parse_json`` and ``read_npz`` read what may come
from elsewhere: nothing is unpacked or believed before it is checked, and no pickle is loaded. Checkpoints, policies,
predictions and reports go through here. It imports from no other room.
"""

from hesitant.files.plain_npz import ArrayHeader, npz_bytes, read_npz, write_npz
from hesitant.files.strict_json import parse_json
from hesitant.files.whole_files import replacing, require_folder, write_text

__all__ = [
    "ArrayHeader",
    "npz_bytes",
    "parse_json",
    "read_npz",
    "replacing",
    "require_folder",
    "write_npz",
    "write_text",
]
