"""The inside of SNGP: which layer is its classifier, what the model makes of the logits, which features count.

``find_classifier`` tells the Linear that makes the logits which are read; ``continuation`` what a model makes of its
classifier's logits, by which a variance is carried to the answer; ``counted_features`` which features have a part in
it, of which the covariance is made; ``monte_carlo`` draws; ``fingerprint`` tells whether weights have moved;
``share_weights`` and ``raise_together`` keep the workers of a run together. Only ``methods/sngp.py`` calls them.
"""

from hesitant.methods.gaussian_head.classifier import find_classifier, idle_copies
from hesitant.methods.gaussian_head.continuation import continuation, only_call
from hesitant.methods.gaussian_head.draws import monte_carlo
from hesitant.methods.gaussian_head.features import counted_features, repeating
from hesitant.methods.gaussian_head.fingerprint import fingerprint
from hesitant.methods.gaussian_head.workers import raise_together, share_weights

__all__ = [
    "continuation",
    "counted_features",
    "find_classifier",
    "fingerprint",
    "idle_copies",
    "monte_carlo",
    "only_call",
    "raise_together",
    "repeating",
    "share_weights",
]
