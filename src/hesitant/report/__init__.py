"""One self-contained HTML page of a comparison: which method to use, what it promises, and where it fails.

``report`` writes the page (``page``): the verdict in words (``verdict``), figures and how they look (``figures``,
``appearance``), the inputs themselves (``shown_inputs``). Users, the demos and the ``hesitant evaluate`` command call
it.
Names imported ``as`` themselves are for other rooms, not for users.
"""

from hesitant.report.page import rendered as rendered
from hesitant.report.page import report
from hesitant.report.shown_inputs import Look as Look
from hesitant.report.verdict import Verdict as Verdict
from hesitant.report.verdict import verdict as verdict

__all__ = ["report"]
