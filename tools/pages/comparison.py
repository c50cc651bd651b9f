"""The comparisons that are published: tables and pictures from the ``results.json`` in a folder.

``tenfold compare --experiment experiments/NAME/config.yaml --out experiments/NAME/results`` makes the file, `write` the
rest. A mark names the folder as the page links to it: ``<!-- table: comparison experiments/NAME/results -->``.
"""

from pathlib import Path

from tenfold.bench.compare.results import Results
from tenfold.bench.compare.scheduler import MERGED
from tenfold.bench.report import removal, stale_pictures, tables, tradeoff, words, write_pictures, write_report
from tenfold.bench.report.figure import Panel
from tenfold.bench.report.summary import entries
from tenfold.bench.report.tables import Cell, Table
from tenfold.cli.compare import REPORT
from tools.pages.cells import NOTHING_YET, ROOT, markdown

PICTURES = ("params", "latency", "cuts")
FOLDER = "pictures"
_IN_THE_TABLE = ("Methods", "Budgets")


def published() -> list[Path]:
    """The folders with results."""
    return sorted(path.parent for path in ROOT.glob(f"experiments/*/results/{MERGED}"))


def comparison(link: str) -> str:
    """What it comes to, the table, and the pictures. Says so where nothing is measured yet."""
    results = _read(link)
    if results is None:
        return NOTHING_YET
    found = entries(results)
    facts = [f"{term}: {told}" for term, told in words.facts(found, results) if term not in _IN_THE_TABLE]
    shown = [panel for panel in tradeoff.all_costs(found) if panel is not None and panel.id in PICTURES]
    return "\n".join(
        [
            *(f"- {_plain(sentence)}" for sentence in words.lead(found, results)),
            f"- {_plain('; '.join(facts))}.\n",
            _table(tables.headline(found, results)),
            *(_picture(panel, f"{link}/{FOLDER}") for panel in shown),
            f"\n[{MERGED}]({link}/{MERGED}) has every figure. `tenfold report {_here(link)}` makes the page with "
            "ranks, singular values, curves, costs and failures, as does `make docs`.\n",
        ]
    )


def stages(link: str) -> str:
    """Accuracy from stage to stage."""
    results = _read(link)
    made = None if results is None else tables.stages(entries(results))
    return NOTHING_YET if made is None else _table(made)


def cuts(link: str) -> str:
    """Accuracy against the share that is removed: table and picture."""
    results = _read(link)
    found = [] if results is None else entries(results)
    made, panel = tables.cuts(found), removal.against_removed(found)
    return NOTHING_YET if made is None or panel is None else f"{_table(made)}\n{_picture(panel, f'{link}/{FOLDER}')}\n"


def write(folder: Path) -> None:
    """The report and the pictures of the results in ``folder``; pictures of anything else are removed."""
    results = Results.read(folder / MERGED)
    write_report(results, folder / REPORT)
    write_pictures(results, folder / FOLDER, PICTURES)
    for path in stale_pictures(results, folder / FOLDER, PICTURES):
        path.unlink()


def stale(folder: Path) -> list[Path]:
    """The pictures that `write` would change, by what they show. Reports are not kept: none is out of step."""
    return stale_pictures(Results.read(folder / MERGED), folder / FOLDER, PICTURES)


def _read(link: str) -> Results | None:
    path = ROOT / _here(link) / MERGED
    return Results.read(path) if path.exists() else None


def _here(link: str) -> str:
    """A folder as the root sees it; pages in folders of their own link to it otherwise."""
    return link.replace("../", "")


def _table(made: Table) -> str:
    """A table of the report as Markdown, with its caption below."""
    rows = []
    for group in made.groups:
        if group.title:
            rows.append([f"**{_plain(group.title)}**", *[""] * (len(made.head) - 1)])
        rows += [[_cell(cell) for cell in row] for row in group.rows]
    return f"{markdown(made.head, rows)}\n{_plain(made.caption).strip()}\n"


def _cell(cell: Cell) -> str:
    text = f"★ **{cell.text}**" if cell.best else cell.text
    return _plain(f"{text} ({cell.note})" if cell.note else text).replace("|", "\\|")


def _plain(text: str) -> str:
    return text.replace("\xa0", " ")


def _picture(panel: Panel, folder: str) -> str:
    """A picture in the theme of whoever looks at it; two of them stand side by side where there is room."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{folder}/{panel.id}-dark.png">'
        f'<img width="49%" src="{folder}/{panel.id}.png" alt="{panel.alt}"></picture>'
    )
