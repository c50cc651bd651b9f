"""The report of a comparison: a page that holds all of it, and pictures of its plots."""

from tenfold.bench.report.page import write_report as write_report
from tenfold.bench.report.pictures import stale_pictures as stale_pictures
from tenfold.bench.report.pictures import write_pictures as write_pictures
