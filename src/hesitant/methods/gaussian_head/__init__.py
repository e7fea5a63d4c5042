"""The inside of SNGP: which layer is its classifier, what the model makes of the logits, which features count.

``find_classifier`` tells the Linear that makes the logits which are read (``logit_makers``); ``ReplacedClassifier``
lets the Gaussian process start from what it knew; ``training_output`` is the forward of training, with the penalty in a
loss of the model's own (``penalized``); ``posterior_of`` carries a variance through what a model makes of its
classifier's logits (``continuation``, ``linear_dependence``); ``summed_contributions`` answers what all the data, or a
sample of them (``features``: which count), shared among ``workers``, say of the covariance; ``keep`` holds training
features for a nearest-neighbour score; ``monte_carlo`` draws; ``FittedWeights`` tells whether weights have moved
(``fingerprint``). Only the methods call them.
"""

from hesitant.methods.gaussian_head.classifier import find_classifier, gaussian_process_in
from hesitant.methods.gaussian_head.classifier_start import ReplacedClassifier
from hesitant.methods.gaussian_head.covariance_pass import summed_contributions
from hesitant.methods.gaussian_head.draws import monte_carlo
from hesitant.methods.gaussian_head.features import counted_features
from hesitant.methods.gaussian_head.fingerprint import fingerprint
from hesitant.methods.gaussian_head.fitted_weights import FittedWeights
from hesitant.methods.gaussian_head.neighbors import OodScore, keep, neighbors_for, sample_for
from hesitant.methods.gaussian_head.posterior_of_answer import posterior_of
from hesitant.methods.gaussian_head.training_output import FrozenHeadWarning, training_output
from hesitant.methods.gaussian_head.workers import share_weights

__all__ = [
    "FittedWeights",
    "FrozenHeadWarning",
    "OodScore",
    "ReplacedClassifier",
    "counted_features",
    "find_classifier",
    "fingerprint",
    "gaussian_process_in",
    "keep",
    "monte_carlo",
    "neighbors_for",
    "posterior_of",
    "sample_for",
    "share_weights",
    "summed_contributions",
    "training_output",
]
