"""The kinds of cases as the layers of PyTorch run them."""

from pathlib import Path

from . import end_to_end_case, gaussian_process_case, mean_field_case, spectral_conv_case, spectral_dense_case
from .case import Case, run_by

_KINDS = (gaussian_process_case, mean_field_case, spectral_dense_case, spectral_conv_case, end_to_end_case)


def run_case(path: Path) -> Case:
    """Runs one file and answers its record.

    Raises:
        CaseError: As `run_by`.
    """
    return run_by(_KINDS, path)
