"""The inside of SNGP: which layer is its classifier, what the model makes of the logits, which features count.

``find_classifier`` tells the Linear that makes the logits which are read (``logit_makers``); ``ReplacedClassifier``
lets the Gaussian process start from what it knew; ``continuation`` tells what a model makes of its classifier's
logits, by which a variance is carried to the answer (``linear_dependence``); ``counted_features`` which features have a
part in it, and ``summed_contributions`` what all the data, shared among ``workers``, say of the covariance;
``monte_carlo`` draws; ``FittedWeights`` tells whether weights have moved (``fingerprint``). Only ``methods/sngp.py``
calls them.
"""

from hesitant.methods.gaussian_head.classifier import find_classifier, gaussian_process_in
from hesitant.methods.gaussian_head.classifier_start import ReplacedClassifier
from hesitant.methods.gaussian_head.continuation import continuation, only_call
from hesitant.methods.gaussian_head.covariance_pass import summed_contributions
from hesitant.methods.gaussian_head.draws import monte_carlo
from hesitant.methods.gaussian_head.features import counted_features, repeating
from hesitant.methods.gaussian_head.fitted_weights import FittedWeights

__all__ = [
    "FittedWeights",
    "ReplacedClassifier",
    "continuation",
    "counted_features",
    "find_classifier",
    "gaussian_process_in",
    "monte_carlo",
    "only_call",
    "repeating",
    "summed_contributions",
]
