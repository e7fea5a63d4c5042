"""The layout that DESIGN.md promises; the directions of imports are in pyproject.toml, checked by `make lint`."""

import ast
from pathlib import Path

import pytest

import hesitant

HOUSE = Path(hesitant.__file__).parent
# For the sake of `hesitant --help`, which imports nothing that is heavy; each file of integrations is a door.
WITHOUT_A_DOOR = {"hesitant.demos", "hesitant.integrations"}


def past_doors(house: Path) -> list[str]:
    """Answers the imports that reach into another room, past its ``__init__``."""
    found = []
    for file in sorted(house.rglob("*.py")):
        importer = ".".join(["hesitant", *file.relative_to(house).with_suffix("").parts]).removesuffix(".__init__")
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("hesitant."):
                continue
            assert node.module is not None
            is_room = (house / Path(*node.module.split(".")[1:])).is_dir()
            room = node.module if is_room else node.module.rsplit(".", 1)[0]
            if not is_room and not f"{importer}.".startswith(f"{room}.") and room not in WITHOUT_A_DOOR:
                found.append(f"{importer} imports {node.module}")
    return found


def test_a_room_is_entered_by_its_door() -> None:
    assert past_doors(HOUSE) == []


def test_an_import_past_a_door_is_found(tmp_path: Path) -> None:
    for room in ("nn", "methods"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
    (tmp_path / "nn" / "inner.py").write_text("from hesitant.nn.other import a\n")
    (tmp_path / "methods" / "outer.py").write_text("from hesitant.nn import a\nfrom hesitant.nn.inner import a\n")
    assert past_doors(tmp_path) == ["hesitant.methods.outer imports hesitant.nn.inner"]


@pytest.mark.parametrize(
    "door", sorted(HOUSE.rglob("*/__init__.py")), ids=lambda door: str(door.parent.relative_to(HOUSE))
)
def test_each_room_says_what_is_in_it_and_who_calls_it(door: Path) -> None:
    says = ast.get_docstring(ast.parse(door.read_text())) or ""
    assert len(says.split("\n\n")) > 1  # a line and a paragraph
    assert any(word in says for word in ("call", "import", "train", "rank", "user"))


def test_no_file_is_too_long_to_be_one_idea() -> None:
    lengths = {str(file.relative_to(HOUSE)): len(file.read_text().splitlines()) for file in HOUSE.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > 450} == {}
