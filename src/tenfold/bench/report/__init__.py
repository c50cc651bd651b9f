"""The report of a comparison: a page that holds all of it, and pictures of its main plots."""

from tenfold.bench.report.page import write_report as write_report
from tenfold.bench.report.pictures import write_pictures as write_pictures
