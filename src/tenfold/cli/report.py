"""``tenfold report``: a page from the results of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenfold.bench.compare.results import Results
from tenfold.bench.compare.scheduler import MERGED
from tenfold.bench.report import write_pictures, write_report
from tenfold.cli.command import Outcome, verb
from tenfold.cli.compare import REPORT, table
from tenfold.cli.options import check_file, with_default

NAME = "report"
EXAMPLES = "Examples:\n\ntenfold report runs/x/results.json --out report.html\n\ntenfold report runs/x --force"


@verb
def command(
    results: Annotated[
        Path,
        typer.Argument(metavar="RESULTS", help="results.json of tenfold compare, or its folder.", show_default=False),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help=with_default("The page.", "report.html beside the results")),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the plots as PNG files, for light and dark.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --out.")] = False,
) -> Outcome:
    """Write the report of a comparison: one HTML file that needs nothing else, no network either."""
    file = results / MERGED if results.is_dir() else results
    page = out or file.with_name(REPORT)
    check_file(page, force=force)
    found = Results.read(file)
    write_report(found, page)
    drawn = [] if pictures is None else write_pictures(found, pictures)
    body = {"command": NAME, "results": str(file), "report": str(page), "runs": len(found.runs)}
    body |= {"pictures": [str(path) for path in drawn]}
    shown = f"Report in {page}" + (f", {len(drawn)} pictures in {pictures}" if drawn else "")
    return Outcome(body, [table(found), shown])
