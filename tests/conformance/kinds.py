"""Which kind of case a file is: told by its contents, never by its name."""

from pathlib import Path

from . import end_to_end_case, gaussian_process_case, mean_field_case, spectral_conv_case, spectral_dense_case
from .case import Case, CaseError

_KINDS = (gaussian_process_case, mean_field_case, spectral_dense_case, spectral_conv_case, end_to_end_case)


def run_case(path: Path) -> Case:
    """Runs one file and answers its record.

    Raises:
        CaseError: The file cannot be read, is of no known kind, is not met, or holds what the runner does not know.
    """
    case = Case(path)
    kinds = [kind for kind in _KINDS if kind.recognises(case)]
    if len(kinds) != 1:
        raise CaseError(
            f"{path} is of {'no' if not kinds else 'more than one'} kind that the runner knows: {sorted(case.keys)}."
        )
    kinds[0].run(case)
    case.finish()
    return case
