import pytest


@pytest.fixture(scope="module")
def small_demos():
    """Makes the demos ask fewer members, at fewer points of the plane, and take the time once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hesitant.demos.methods.NUM_MEMBERS", 2)
        patch.setattr("hesitant.demos.two_moons.RESOLUTION", 25)
        patch.setattr("hesitant.demos.result.TIMED_REPEATS", 1)
        yield
