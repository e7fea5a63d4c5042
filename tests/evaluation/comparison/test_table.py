import torch

from hesitant.evaluation.comparison.compare import Comparison
from hesitant.prediction import Prediction

PREDICTION = Prediction.from_logits(torch.eye(3).repeat(30, 1), targets=torch.arange(90) % 3)
STRANGE = "a*b_c`d[e]<f>\\$1$\n~g~ \u202e&#33;\x1b"


def test_markdown_shows_names_as_text_in_their_cell():
    table = Comparison.from_predictions({STRANGE: PREDICTION}, ood={STRANGE: {STRANGE: PREDICTION}})
    lines = table.to_markdown().splitlines()
    name = r"a\*b\_c\`d\[e\]\<f\>\\\$1\$ \~g\~ \&\#33;" + "\ufffd"
    assert lines[0] == f"|  | {name} |"
    assert len({line.count(" | ") for line in lines}) == 1
    assert sum(line.startswith(rf"| AUROC, {name} |") for line in lines) == 1
    assert len(lines) == 2 + len(table.columns)


def test_as_text_a_name_keeps_to_its_line_and_turns_nothing_round():
    names = (STRANGE, "two\nlines", "abc\u202edef")
    table = Comparison.from_predictions({name: PREDICTION for name in names})
    text = str(table)
    assert not set("\u202e\x1b\x07") & set(text)
    assert len(text.splitlines()) == 1 + len(table.columns)
    assert "two lines" in text.splitlines()[0]
    assert "abcdef" in text.splitlines()[0]
