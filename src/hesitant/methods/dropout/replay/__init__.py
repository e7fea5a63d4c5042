"""The replay: what no drawn number reaches is computed in the first pass alone, and the passes after it run together.

``RecordedPass`` runs the first pass and notes, operation by operation, whether drawn numbers reached it.
``ReplayedPasses`` runs the model's code again for several passes at once, on inputs repeated: an operation that no
drawn number reaches answers with a ``Placeholder``, and where a placeholder meets drawn numbers, the first pass's
tensor takes its place. Where the model takes another course than before, ``OtherCourseError`` says so. ``passes`` calls
it.
"""

from hesitant.methods.dropout.replay.placeholders import OtherCourseError
from hesitant.methods.dropout.replay.recorded_pass import RecordedPass
from hesitant.methods.dropout.replay.replayed_passes import ReplayedPasses

__all__ = ["OtherCourseError", "RecordedPass", "ReplayedPasses"]
