import math

import numpy as np
import pytest
from scipy.stats import binom

from hesitant.evaluation.deferral.risk_bounds import error_tail, smallest_counts, tolerated_errors

RISKS = pytest.mark.parametrize("risk", [1e-4, 0.01, 0.2, 0.5, 0.97])


@RISKS
def test_the_tail_is_the_binomial_one(risk):
    counts = np.array([0, 1, 5, 40, 300, 5000, 10**6])
    for share in (0.0, 0.004, 0.3, 1.0):
        errors = np.floor(share * counts).astype(int)
        expected = binom.cdf(errors, counts, risk)
        np.testing.assert_allclose(error_tail(errors, counts, risk), expected, rtol=1e-8, atol=1e-300)


@RISKS
def test_the_tail_of_small_counts_is_a_plain_sum(risk):
    for count in range(6):
        for errors in range(count + 1):
            plain = sum(math.comb(count, k) * risk**k * (1 - risk) ** (count - k) for k in range(errors + 1))
            assert error_tail(np.array([errors]), np.array([count]), risk)[0] == pytest.approx(plain, rel=1e-10)


@RISKS
def test_tolerated_errors_are_the_most_that_refute(risk):
    counts = np.array([0, 1, 2, 10, 299, 1000, 10**6])
    for delta in (1e-6, 0.05, 0.6):
        tolerated = tolerated_errors(counts, risk, delta)
        assert (binom.cdf(tolerated, counts, risk) <= delta).all()  # of -1 errors it is 0
        assert (binom.cdf(tolerated + 1, counts, risk) > delta).all()


@RISKS
def test_smallest_counts_are_the_fewest_that_refute(risk):
    errors = np.array([0, 1, 2, 17, 400])
    for delta in (1e-6, 0.05, 0.6):
        counts = smallest_counts(errors, risk, delta)
        assert (binom.cdf(errors, counts, risk) <= delta).all()
        assert (binom.cdf(errors, counts - 1, risk) > delta).all()


def test_a_risk_of_a_hundredth_takes_299_inputs_without_an_error():
    assert smallest_counts(np.array([0, 1]), 0.01, 0.05).tolist() == [299, 473]
    assert tolerated_errors(np.array([298, 299, 472, 473]), 0.01, 0.05).tolist() == [-1, 0, 0, 1]
