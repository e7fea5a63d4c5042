"""What a number of errors says about a risk: exact binomial tails, for many counts at once.

Of `count` independent inputs that err with probability `risk` each, `P(at most k errors) = I_{1 - risk}(count - k,
k + 1)`, the regularised incomplete beta function: no approximation for large or for small counts. By SciPy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Numbers = np.ndarray[Any, np.dtype[Any]]

__all__ = ["error_tail", "smallest_counts", "tolerated_errors"]


def error_tail(errors: "Numbers", counts: "Numbers", risk: float) -> "Numbers":
    """`P(Binomial(count, risk) <= errors)`: the p-value of "the risk is at least `risk`", in [0, 1].

    Args:
        errors: of `(K,)` numbers of errors, 0 to the count; fractions interpolate.
        counts: `(K,)` numbers of inputs, at least 0.
        risk: in (0, 1).

    Raises:
        ImportError: SciPy is not installed.
    """
    import numpy as np

    try:
        from scipy.special import betainc
    except ImportError as error:
        raise ImportError("this needs scipy: pip install 'hesitant[evaluation]'") from error
    spared = np.maximum(counts - errors, 0)
    return np.where(spared > 0, betainc(np.where(spared > 0, spared, 1), errors + 1, 1 - risk), 1.0)


def tolerated_errors(counts: "Numbers", risk: float, delta: float) -> "Numbers":
    """The most errors among `counts` inputs that still refute a risk of `risk` at level `delta`; -1 where none do.

    Args:
        counts: `(K,)` integers of at least 0.
        risk: in (0, 1).
        delta: in (0, 1).

    Raises:
        ImportError: SciPy is not installed.
    """
    import numpy as np

    refuted, not_refuted = np.full_like(counts, -1), np.array(counts)  # all of them wrong refutes nothing
    while bool((not_refuted - refuted > 1).any()):
        middle = (refuted + not_refuted) // 2
        passed = (error_tail(np.maximum(middle, 0), counts, risk) <= delta) & (middle >= 0)
        refuted, not_refuted = np.where(passed, middle, refuted), np.where(passed, not_refuted, middle)
    return refuted


def smallest_counts(errors: "Numbers", risk: float, delta: float) -> "Numbers":
    """The fewest inputs that refute a risk of `risk` at level `delta` in spite of so many errors.

    Without an error `ceil(log delta / log(1 - risk))`: 299 at a risk of 1 % and a delta of .05.

    Args:
        errors: `(K,)` integers of at least 0.
        risk: in (0, 1).
        delta: in (0, 1).

    Raises:
        ImportError: SciPy is not installed.
    """
    import numpy as np

    too_few, enough = np.array(errors), errors + 1
    while bool((short := error_tail(errors, enough, risk) > delta).any()):
        too_few, enough = np.where(short, enough, too_few), np.where(short, 2 * enough, enough)
    while bool((enough - too_few > 1).any()):
        middle = (too_few + enough) // 2
        passed = error_tail(errors, middle, risk) <= delta
        too_few, enough = np.where(passed, too_few, middle), np.where(passed, middle, enough)
    return enough
