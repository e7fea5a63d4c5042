"""The inside of SNGP: which layer is its classifier, what the model makes of the logits, which features count.

``find_classifier`` tells the Linear that makes the logits which are read (``logit_makers``); ``ReplacedClassifier``
lets the Gaussian process start from what it knew; ``gathered_answers`` asks a model about batches, each answer with the
Gaussian of its logits: ``posterior_of_answer`` carries a variance through what a model makes of its classifier's logits
(``continuation``, ``linear_dependence``); ``counted_features`` tells which features count. ``CovarianceSums`` adds up
what data say of the covariance of given weights (``summed_weights``, ``sums_as_bytes``), and keeps training features
for a nearest-neighbour score (``neighbors``); ``fit_by_a_pass`` makes them over all the data, shared among ``workers``;
``monte_carlo`` draws; ``FittedWeights`` tells whether weights have moved (``fingerprint``); ``training_output`` is the
forward of training, with the penalty in a loss of the model's own (``penalized``); ``stated_options`` are what is
saved. Only the methods call them; ``CovarianceSums`` is for users.
"""

from hesitant.methods.gaussian_head.classifier import find_classifier, gaussian_process_in, laplace_prefix
from hesitant.methods.gaussian_head.classifier_start import ReplacedClassifier
from hesitant.methods.gaussian_head.covariance_pass import fit_by_a_pass, prepare_for_sums
from hesitant.methods.gaussian_head.covariance_sums import CovarianceSums
from hesitant.methods.gaussian_head.draws import monte_carlo
from hesitant.methods.gaussian_head.features import counted_features
from hesitant.methods.gaussian_head.fingerprint import fingerprint
from hesitant.methods.gaussian_head.fitted_weights import FittedWeights
from hesitant.methods.gaussian_head.gathered_answers import gathered_answers
from hesitant.methods.gaussian_head.neighbors import OodScore, neighbors_for
from hesitant.methods.gaussian_head.stated_options import activation_named, complete_options, stated_options
from hesitant.methods.gaussian_head.training_output import FrozenHeadWarning, training_output
from hesitant.methods.gaussian_head.workers import share_weights

__all__ = [
    "CovarianceSums",
    "FittedWeights",
    "FrozenHeadWarning",
    "OodScore",
    "ReplacedClassifier",
    "activation_named",
    "complete_options",
    "counted_features",
    "find_classifier",
    "fingerprint",
    "fit_by_a_pass",
    "gathered_answers",
    "gaussian_process_in",
    "laplace_prefix",
    "monte_carlo",
    "neighbors_for",
    "prepare_for_sums",
    "share_weights",
    "stated_options",
    "training_output",
]
