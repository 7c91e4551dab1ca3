"""Reports of finished, failed and unfinished runs: read from their folders, without torch.

``runs`` reads, ``summary`` compares, ``charts`` draws, ``page`` writes.
"""

from scoreexp.runs.reporting.page import BUSY as BUSY
from scoreexp.runs.reporting.page import write_report as write_report
from scoreexp.runs.reporting.runs import COMPARISON_FILE as COMPARISON_FILE
from scoreexp.runs.reporting.runs import Plan as Plan
from scoreexp.runs.reporting.runs import Run as Run
from scoreexp.runs.reporting.runs import conditions as conditions
from scoreexp.runs.reporting.runs import find_runs as find_runs
