"""A program as a file of torch: of ``torch.export``, or compiled by AOTInductor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from hesitant.integrations.export.capture import quiet

METADATA = "hesitant.json"


def write_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes what ``torch.export.load`` reads; the metadata are its extra file ``hesitant.json``."""
    with quiet():
        torch.export.save(program, path, extra_files={METADATA: json.dumps(dict(metadata), indent=2)})


def write_compiled(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Compiles what ``torch._inductor.aoti_load_package`` loads; its ``get_metadata()`` answers the metadata.

    Raises:
        RuntimeError: There is no C++ compiler.
    """
    from torch._inductor import aoti_compile_and_package

    with quiet(), torch.no_grad():
        aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"aot_inductor.metadata": dict(metadata)}
        )


class ProgramAnswers:
    """Asks a file of torch.

    Args:
        path: Of the file.
        compiled: Whether AOTInductor wrote it.
    """

    def __init__(self, path: Path, *, compiled: bool) -> None:
        with quiet():
            if compiled:
                from torch._inductor import aoti_load_package

                self._answers: Any = aoti_load_package(str(path))
            else:
                self._answers = torch.export.load(path).module()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Answers the outputs by name."""
        with quiet(), torch.no_grad():
            answers: dict[str, Tensor] = self._answers(*args, **kwargs)
        return answers
