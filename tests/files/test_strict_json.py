import json

import pytest

from hesitant.files.strict_json import parse_json


@pytest.mark.parametrize("text", ["{}", '[1, -2.5, 1e308, "NaN", null, true, {"a": [[]]}]', '"\\u202e"', "0.1"])
def test_json_is_read_as_python_reads_it(text):
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ('{"a": NaN}', "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ('{"threshold": 1e400}', "1e400, a number that is too large"),
        ("-1e999", "-1e999"),
        ('{"a": 1, "b": 2, "a": 1}', "'a' twice"),
        ('[{"b": {"a": 1, "a": 2}}]', "'a' twice"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5000, "digits"),
    ],
    ids=["empty", "NaN", "Infinity", "too large", "too small", "twice", "twice within", "lists", "dicts", "long"],
)
def test_what_has_two_readings_or_is_no_number_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
