"""The inside of SNGP: which layer is its classifier, what the model makes of the logits, which features count.

``find_classifier`` tells the Linear that makes the logits which are read (``logit_makers``); ``ReplacedClassifier``
lets the Gaussian process start from what it knew; ``gathered_answers`` asks a model about batches, each answer with the
Gaussian of its logits: ``posterior_of_answer`` carries a variance through what a model makes of its classifier's logits
(``continuation``, ``linear_dependence``); ``counted_features`` tells which features count, and
``summed_contributions`` what all the data, shared among ``workers``, say of the covariance; ``keep`` holds training
features for a nearest-neighbour score; ``monte_carlo`` draws; ``FittedWeights`` tells whether weights have moved
(``fingerprint``); ``warn_if_frozen`` tells of a head that learns nothing;
``stated_options`` are what is saved. Only the methods call them.
"""

from hesitant.methods.gaussian_head.classifier import find_classifier, gaussian_process_in
from hesitant.methods.gaussian_head.classifier_start import ReplacedClassifier
from hesitant.methods.gaussian_head.covariance_pass import summed_contributions
from hesitant.methods.gaussian_head.draws import monte_carlo
from hesitant.methods.gaussian_head.features import counted_features
from hesitant.methods.gaussian_head.fingerprint import fingerprint
from hesitant.methods.gaussian_head.fitted_weights import FittedWeights
from hesitant.methods.gaussian_head.frozen_head import FrozenHeadWarning, warn_if_frozen
from hesitant.methods.gaussian_head.gathered_answers import gathered_answers
from hesitant.methods.gaussian_head.neighbors import OodScore, keep, neighbors_for, sample_for
from hesitant.methods.gaussian_head.stated_options import activation_named, complete_options, stated_options

__all__ = [
    "FittedWeights",
    "FrozenHeadWarning",
    "OodScore",
    "ReplacedClassifier",
    "activation_named",
    "complete_options",
    "counted_features",
    "find_classifier",
    "fingerprint",
    "gathered_answers",
    "gaussian_process_in",
    "keep",
    "monte_carlo",
    "neighbors_for",
    "sample_for",
    "stated_options",
    "summed_contributions",
    "warn_if_frozen",
]
