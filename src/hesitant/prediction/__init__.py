"""What every method answers with: one distribution over the classes an input, and the uncertainties that follow.

``Prediction`` is public. Beneath it are distributions over classes (``distributions``), the mean of several and how far
they disagree (``Mixture``; ``from_mixture`` makes a prediction of it), the evidence in logits (``evidence``), arguments
checked by name (``arguments``), and a prediction read in parts of bounded size (``parts``). Torch alone is needed.
Every room above imports from here; this one imports from none.
Names imported ``as`` themselves are for other rooms, not for users.
"""

from hesitant.prediction.arguments import as_finite as as_finite
from hesitant.prediction.arguments import as_floating as as_floating
from hesitant.prediction.arguments import as_tensor as as_tensor
from hesitant.prediction.distributions import entropy as entropy
from hesitant.prediction.distributions import exact_log as exact_log
from hesitant.prediction.distributions import two_class_logits as two_class_logits
from hesitant.prediction.evidence import dempster_shafer as dempster_shafer
from hesitant.prediction.evidence import energy_of as energy_of
from hesitant.prediction.evidence import evidence_of as evidence_of
from hesitant.prediction.evidence import uniformity as uniformity
from hesitant.prediction.from_mixture import prediction_from_mixture as prediction_from_mixture
from hesitant.prediction.mixture import Mixture as Mixture
from hesitant.prediction.parts import in_parts as in_parts
from hesitant.prediction.parts import parts_of as parts_of
from hesitant.prediction.prediction import Prediction
from hesitant.prediction.unavailable import UnavailableError

__all__ = ["Prediction", "UnavailableError"]
