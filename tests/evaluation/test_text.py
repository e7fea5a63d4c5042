import pytest

from hesitant.evaluation.text import isolated, one_line, without_controls, without_overrides

HEBREW = "\u05d0\u05d1\u05d2"
OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067"
OTHERS = "\u061c\u200e\u200f\u2068\u2069"


@pytest.mark.parametrize("text", ["", "SNGP", "a method & <its> name", "cost $5", "Größe", "深い", HEBREW, "é"])
def test_names_without_controls_stay_as_they_are(text):
    assert without_controls(text) == without_overrides(text) == one_line(text) == text
    assert isolated(text) == (f"\u2068{text}\u2069" if text == HEBREW else text)


@pytest.mark.parametrize("control", OVERRIDES + OTHERS)
def test_no_control_of_the_direction_is_left_in_a_name(control):
    assert (
        one_line(f"abc{control}def") == without_controls(f"abc{control}def") == isolated(f"abc{control}def") == "abcdef"
    )
    assert isolated(f"{control}{HEBREW}{control}") == f"\u2068{HEBREW}\u2069"
    assert (control in without_overrides(f"abc{control}def")) == (control in OTHERS)


def test_a_name_is_one_line_and_tells_a_terminal_nothing():
    assert one_line(" a\n\tb\u2028c  d ") == "a b c d"
    assert one_line("\x1b[31mred\x07\x00\x9b") == "\ufffd[31mred\ufffd\ufffd\ufffd"


def test_numbers_in_arabic_are_isolated_too():
    assert isolated("\u0663") == "\u2068\u0663\u2069"
