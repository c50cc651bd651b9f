"""Write what is made from result files: ``python -m tools.pages``; ``--check`` only compares.

That is the tables of README.md and docs/, and the pictures of each published comparison. A table stands between
``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is a function in `accuracy`, `comparison`, `trained` or `timing`
beside this, with its arguments behind it. No figure is typed by hand. The reports of the comparisons, pages of five
megabytes, are made along and not kept in the repository.
"""

import argparse
import re
import sys
from collections.abc import Callable

from tools.pages import accuracy, comparison, stress, timing, trained
from tools.pages.cells import ROOT

PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"(<!-- table: (\w+)([^\n]*) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES: dict[str, Callable[..., str]] = {
    one.__name__: one
    for one in (
        accuracy.first_path,
        accuracy.post_training,
        accuracy.proxies,
        accuracy.projection,
        accuracy.pretrained,
        accuracy.label_free,
        accuracy.int8,
        accuracy.sentences,
        accuracy.training,
        accuracy.detector,
        accuracy.norms,
        comparison.comparison,
        comparison.stages,
        comparison.cuts,
        trained.sfw,
        trained.conditioning,
        trained.tolerance,
        trained.defaults,
        timing.allocation_speed,
        timing.inference_speed,
        timing.inference_summary,
        timing.latency_budgets,
        timing.projection_speed,
        timing.projection_overhead,
        timing.oracle_speed,
        timing.sfw_step,
        timing.recurrent,
        timing.tucker_step,
        timing.tucker_memory,
        stress.kills,
        stress.strangers,
    )
}


def main() -> int:
    """Rewrite pages and pictures, make reports; with ``--check``, say what is out of step, and fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where something is out of step")
    check = parser.parse_args().check
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        new = MARK.sub(lambda m: m[1] + TABLES[m[2]](*m[3].split()) + m[4], text)
        if new != text:
            stale.append(name)
            if not check:
                page.write_text(new, encoding="utf-8")
    for folder in comparison.published():
        stale += [str(path.relative_to(ROOT)) for path in comparison.stale(folder)]
        if not check:
            comparison.write(folder)
    for name in stale:
        sys.stdout.write(f"{name}: {'out of step, run make docs' if check else 'rewritten'}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
