import pytest
import torch

from hesitant.methods.picking import at_position, picked_position

LOGITS = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
POSITION = torch.tensor([4, 0, 2, 2, 1, 3])


def test_the_position_is_found_from_the_rows() -> None:
    answer = at_position(LOGITS, POSITION)
    assert answer.shape == (6, 3)
    assert torch.equal(picked_position(LOGITS, answer), POSITION)
    single = LOGITS[..., :1]
    assert torch.equal(picked_position(single, at_position(single, POSITION)), POSITION)


def test_an_answer_of_all_logits_picks_none() -> None:
    for logits in (LOGITS, LOGITS[:, 0]):
        assert picked_position(logits, logits.clone()) is None
    assert picked_position(LOGITS[:, 0, :1], LOGITS[:, 0, 0]) is None
    assert at_position(LOGITS, None) is LOGITS


@pytest.mark.parametrize("answer", [LOGITS.mean(1), LOGITS[:, 0, :2], LOGITS[:3, 0], LOGITS[:, :2]])
def test_other_answers_are_refused(answer: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="goes on after its classifier"):
        picked_position(LOGITS, answer)
