"""The methods, one file each, with one interface: Deterministic, SNGP, MCDropout, DeepEnsemble.

What they share stands beside them: how a model is asked (``wrapper``), what its outputs are (``outputs``), temperature
(``temperature``), a double of a model so that no call writes onto it (``replica``), seeds (``random_state``); and what
detectors ask of them, the features that a classifier is given (``feature_source``). The inside of each is a room of its
own: ``gaussian_head`` of SNGP, ``dropout`` of MC dropout, ``members`` of the ensemble. ``saving`` writes them into a
folder and reads one; ``loading`` makes them again, from networks that ``rebuilding`` builds. ``training`` trains the
methods, ``detection`` and ``evaluation`` ask them.
Names imported ``as`` themselves are for other rooms, not for users.
"""

from hesitant.methods.calibration_digest import calibration_digest as calibration_digest
from hesitant.methods.deep_ensemble import DeepEnsemble
from hesitant.methods.deterministic import Deterministic
from hesitant.methods.feature_source import FeatureSource as FeatureSource
from hesitant.methods.gaussian_head import CovarianceSums, FrozenHeadWarning
from hesitant.methods.gaussian_head import share_weights as share_weights
from hesitant.methods.loading import Loaded as Loaded
from hesitant.methods.loading import load
from hesitant.methods.loading import load_with_detector as load_with_detector
from hesitant.methods.loading import load_within as load_within
from hesitant.methods.loading import saved_policy as saved_policy
from hesitant.methods.loading import saves_detector as saves_detector
from hesitant.methods.mc_dropout import MCDropout
from hesitant.methods.models_of_keras import require_module as require_module
from hesitant.methods.outputs import OutputProbe as OutputProbe
from hesitant.methods.outputs import Outputs as Outputs
from hesitant.methods.outputs import log_probs_of as log_probs_of
from hesitant.methods.outputs import logits_of as logits_of
from hesitant.methods.outputs import require_rows as require_rows
from hesitant.methods.random_state import derived_seed as derived_seed
from hesitant.methods.random_state import random_state_kept as random_state_kept
from hesitant.methods.replica import in_eval_mode as in_eval_mode
from hesitant.methods.replica import replica as replica
from hesitant.methods.saving import ArchitectureWarning, SavedModelError
from hesitant.methods.saving import SavedDetector as SavedDetector
from hesitant.methods.saving import naming as naming
from hesitant.methods.sngp import SNGP
from hesitant.methods.temperature import Tempered as Tempered
from hesitant.methods.temperature import forget_calibrations as forget_calibrations
from hesitant.methods.temperature import tempered as tempered
from hesitant.methods.wrapper import Gathered as Gathered
from hesitant.methods.wrapper import ModelWrapper as ModelWrapper
from hesitant.methods.wrapper import device_of as device_of

__all__ = [
    "SNGP",
    "ArchitectureWarning",
    "CovarianceSums",
    "DeepEnsemble",
    "Deterministic",
    "FrozenHeadWarning",
    "MCDropout",
    "SavedModelError",
    "load",
]
