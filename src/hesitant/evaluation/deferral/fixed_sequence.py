"""Which threshold a risk can be promised for: thresholds tested in a fixed sequence (learn-then-test).

Angelopoulos et al. 2021, "Learn then Test", https://arxiv.org/abs/2110.01052, section 3.2 (fixed sequence testing); the
error rate among answered inputs as in Geifman and El-Yaniv 2017, https://arxiv.org/abs/1705.08500, who pay for every
threshold that they look at, where a sequence pays once.

**The test.** Let inputs be independent draws `(u, wrong)`, `u_(k)` the `k`-th smallest of `N` scores, and let the
hypothesis of rank `k` be `P(wrong | u < u_(k)) > max_risk`: accepting what scores below the `k`-th. Given `u_(k)`, the
inputs below it are independent draws from the population below it. Their errors are binomial with exactly that risk, so
the binomial tail is an exact p-value, though the threshold comes from the data. The `k`-th input itself is not counted;
rank `N + 1` accepts everything.

**The sequence.** Ranks that depend on `N` alone are tested upwards, each at level `delta`, until one fails. To promise
too much, the first rank in the sequence whose hypothesis is true must have been rejected. Which one that is, depends on
the scores; but it says nothing about the errors. For `F(t) = P(wrong, u < t) - max_risk P(u < t)` is continuous where
scores do not tie, so it is 0 wherever it changes sign: between two changes the error rate is exactly `max_risk`, and
above the last one higher. Given how many inputs fall between the changes, which settles where the first true
hypothesis lies, the errors below it are therefore no fewer than binomial with `max_risk`, and its p-value is at most
`delta` with probability `delta` at most. Nothing is assumed about how the risk grows with the score.

**Ties** are accepted together: `u < u_(k)` takes all of a tie or none. `F` then jumps past 0 where it changes sign:
below the beginning of a part that is too risky there are already too many errors, below its end too few. A rank misses
that part if at least `k` inputs lie below its beginning, or fewer than `k` below its end; so data of which no rank met
such a part have more errors, not fewer, and the bound holds as before. (Take the probability of that event together
with few errors, and move the error rates from `max_risk` at every score to the true ones: by a summation by parts over
the scores, each of whose terms has this sign, it only falls.)

One rule departs from this argument: ranks below which ties leave too few inputs to reject anything are passed over and
do not end the sequence, for else one tie among the most confident would. It could matter only where a tied part is too
risky and about as likely as not too small; a search over pairs of tied scores found no case above `delta`, nor did the
simulations of benchmarks/deferral.py.

**The beginning.** Nothing can be rejected below `log delta / log(1 - max_risk)` inputs, 299 at 1 % and .05; there a
sequence begins, and the first error may end it: a few wrong targets among the most confident would cost everything. So
further sequences begin at `N / 2`, `N / 4` and so on, as long as they could bear an error; each has an equal share of
`delta`, the best of them is taken, and together they break the promise with probability `delta` at most. Of N = 20,000
inputs and five sequences this costs one to four hundredths of the coverage, and saves half of it where a quarter of
the errors allowed are spread over all confidences.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hesitant.evaluation.deferral.risk_bounds import error_tail, smallest_counts, tolerated_errors

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]

__all__ = ["FixedSequences", "RankedErrors", "inputs_needed", "least_promise"]

_MAX_TESTS = 2000  # in a sequence: resolves the coverage to 1/2000, and a million inputs take no longer
_RISKS = tuple(  # two digits are enough to say what could be promised
    float(f"{digits}e{power}") for power in range(-7, -1) for digits in range(10, 100)
)


@dataclass(frozen=True, eq=False)
class RankedErrors:
    """The scores of calibration inputs in order, and how many errors stand before each.

    Attributes:
        scores: `(N,)` float64, ascending.
        errors: `(N + 1,)` int64; entry `m` counts the errors among the first `m`.
    """

    scores: "Numbers"
    errors: "Numbers"

    def __len__(self) -> int:
        """`N`."""
        return len(self.scores)

    def below(self, ranks: "Numbers") -> "Numbers":
        """How many inputs score strictly below that of each rank, `(K,)`; ranks count from 1, and `N + 1` is above all.

        `rank - 1` where no scores tie.
        """
        import numpy as np

        inside = np.minimum(ranks, len(self)) - 1
        return np.where(ranks > len(self), len(self), np.searchsorted(self.scores, self.scores[inside], side="left"))


@dataclass(frozen=True, eq=False)
class FixedSequences:
    """The tests to make on `N` calibration inputs, fixed before their scores and errors are looked at.

    Attributes:
        counts: for each sequence the `(K,)` numbers of accepted inputs to test, ascending; rank `count + 1` each.
        max_risk: in (0, 1).
        level: of each test: `delta` over the number of sequences.
        fewest: inputs that could reject anything.
    """

    counts: "tuple[Numbers, ...]"
    max_risk: float
    level: float
    fewest: int

    @classmethod
    def plan(cls, num_inputs: int, max_risk: float, delta: float) -> "FixedSequences":
        """The sequences for so many inputs.

        Args:
            num_inputs: `N`, at least 1.
            max_risk: in (0, 1).
            delta: in (0, 1).

        Raises:
            ImportError: SciPy is not installed.
        """
        halvings = 0
        while num_inputs >> (halvings + 1) >= _fewest(1, max_risk, delta / (halvings + 2)):
            halvings += 1
        level = delta / (halvings + 1)
        fewest = _fewest(0, max_risk, level)
        starts = [fewest, *(num_inputs >> halving for halving in range(1, halvings + 1))]
        counts = tuple(_counts_to_test(start, num_inputs, max_risk, level) for start in starts)
        return cls(counts, max_risk, level, fewest)

    def largest_accepted(self, ranked: RankedErrors) -> int:
        """The most inputs, from the least uncertain upwards, that can be accepted with the promise; 0 where none can.

        Args:
            ranked: of as many inputs as the sequences were planned for.
        """
        import numpy as np

        most = 0
        for counts in self.counts:
            accepted = ranked.below(counts + 1)
            passed = error_tail(ranked.errors[accepted], accepted, self.max_risk) <= self.level
            goes_on = np.logical_and.accumulate(passed | (accepted < self.fewest))
            most = max(most, int(accepted[goes_on & passed].max(initial=0)))
        return most


def least_promise(ranked: RankedErrors, max_risk: float, delta: float) -> float | None:
    """The smallest risk above `max_risk`, to two digits, that these inputs could have been promised; None below 1.

    Args:
        ranked: of `N >= 1` inputs, for which `max_risk` could not be promised.
        max_risk: in (0, 1).
        delta: in (0, 1).

    Raises:
        ImportError: SciPy is not installed.
    """
    risks = [risk for risk in _RISKS if risk > max_risk]
    low, high = -1, len(risks)  # what is tried at `high` has been promised, or is 1
    while high - low > 1:
        middle = (low + high) // 2
        promised = FixedSequences.plan(len(ranked), risks[middle], delta).largest_accepted(ranked) > 0
        low, high = (low, middle) if promised else (middle, high)
    return risks[high] if high < len(risks) else None


def inputs_needed(ranked: RankedErrors, max_risk: float, delta: float) -> int | None:
    """About how many inputs like these it would take to promise `max_risk`, to two digits; None where none would do.

    The best of the thresholds, of which it is supposed that they go on to err as often, and once more for caution, as
    they did here.

    Args:
        ranked: of `N >= 1` inputs, for which `max_risk` could not be promised.
        max_risk: in (0, 1).
        delta: in (0, 1).

    Raises:
        ImportError: SciPy is not installed.
    """
    import numpy as np

    accepted = ranked.below(np.unique(np.linspace(2, len(ranked) + 1, 200).round().astype(np.int64)))
    accepted = np.unique(accepted[accepted > 0])
    errors = ranked.errors[accepted] + 1.0
    hopeful = errors < max_risk * accepted
    if not hopeful.any():
        return None
    accepted, errors = accepted[hopeful], errors[hopeful]
    low, high = np.ones(len(accepted)), np.full(len(accepted), 2.0**20)  # times as many inputs
    for _ in range(40):
        middle = np.sqrt(low * high)
        # Half of delta, for so many inputs would be tested by several sequences.
        enough = error_tail(middle * errors, middle * accepted, max_risk) <= delta / 2
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    needed = high.min() * len(ranked)
    unit = 10.0 ** max(0, math.floor(math.log10(needed)) - 1)
    return int(math.ceil(needed / unit) * unit)


def _fewest(errors: int, max_risk: float, delta: float) -> int:
    import numpy as np

    return int(smallest_counts(np.array([errors]), max_risk, delta)[0])


def _counts_to_test(start: int, num_inputs: int, max_risk: float, delta: float) -> "Numbers":
    """The counts of accepted inputs, from about `start` up to all: where one more error is tolerated, if not too many.

    Between two such counts errors are added and not one more is tolerated: a test there could only end the sequence.
    """
    import numpy as np

    if start > num_inputs:
        return np.zeros(0, dtype=np.int64)
    tests = min(num_inputs - start + 1, _MAX_TESTS)
    counts = np.unique(np.linspace(start, num_inputs, tests).round().astype(np.int64))
    tolerated = np.unique(tolerated_errors(counts, max_risk, delta))
    return np.append(smallest_counts(tolerated[tolerated >= 0], max_risk, delta), num_inputs)
