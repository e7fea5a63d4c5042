"""Deferral: answer an input, or hand it over to a person, with a promise about the answers' error rate.

``DeferralPolicy`` is a threshold on a score; ``fixed_sequence`` chooses it so that the promise holds, by the exact
binomial tails of ``risk_bounds``; ``possible_policies`` refuses figures that no calibration can have made. Users call
``DeferralPolicy``, and so does the recommendation of a comparison.
"""

from hesitant.evaluation.deferral.policy import DeferralPolicy

__all__ = ["DeferralPolicy"]
