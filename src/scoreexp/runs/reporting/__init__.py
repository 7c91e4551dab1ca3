"""Reports of finished, failed and unfinished runs: read from their folders, without torch.

``reading`` reads ``runs`` and their ``settings``, ``summary`` compares them. ``results``, ``image_table``, ``figures``,
``evaluations`` and ``notes`` say what the page shows, ``page`` lays it out by ``templates``; ``csv_table`` has the same
numbers for other programs.
"""

from scoreexp.runs.reporting.notes import BUSY as BUSY
from scoreexp.runs.reporting.page import write_report as write_report
from scoreexp.runs.reporting.reading import find_runs as find_runs
from scoreexp.runs.reporting.runs import COMPARISON_FILE as COMPARISON_FILE
from scoreexp.runs.reporting.runs import Plan as Plan
from scoreexp.runs.reporting.runs import Run as Run
from scoreexp.runs.reporting.settings import conditions as conditions
