import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from hesitant import Prediction


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(autouse=True)
def headless_and_tidy():
    backend = mpl.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture
def answers():
    """Makes predictions of so many inputs that are a little too sure."""

    def make(num_inputs=500, *, num_classes=4, seed=0, sharpness=2.0):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(num_inputs, num_classes, generator=generator, dtype=torch.float64)
        targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        return Prediction.from_logits(sharpness * logits, targets=targets)

    return make


def words(ax):
    """All that is written in the axes, a line each."""
    texts = ax.findobj(match=lambda artist: hasattr(artist, "get_text") and artist.get_visible())
    return "\n".join(text.get_text() for text in texts if text.get_text())


@pytest.fixture(name="words")
def words_of():
    return words
