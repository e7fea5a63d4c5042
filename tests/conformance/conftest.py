"""Makes one test of each recorded case, in the folder that ``--cases`` names."""

from pathlib import Path

import pytest

from .case import find_cases

_CASES = Path(__file__).parent / "cases"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases",
        default=None,
        metavar="DIR",
        help="folder (or file) of conformance cases, relative to the current one; default: tests/conformance/cases",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case_path" not in metafunc.fixturenames:
        return
    folder = _folder(metafunc.config)
    paths = find_cases(folder)
    # A folder without cases is a test that fails: nothing compared must never read as everything met.
    ids = [path.relative_to(folder).with_suffix("").as_posix() if path != folder else path.stem for path in paths]
    metafunc.parametrize("case_path", paths or [folder], ids=ids or ["no cases"])


@pytest.fixture
def case_paths(pytestconfig: pytest.Config) -> list[Path]:
    """All cases, for a test that runs them in one process of its own."""
    return [path.resolve() for path in find_cases(_folder(pytestconfig))]


def _folder(config: pytest.Config) -> Path:
    named = config.getoption("--cases", default=None)
    return _CASES if named is None else config.invocation_params.dir / Path(named).expanduser()
