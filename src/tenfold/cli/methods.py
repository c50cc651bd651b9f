"""``tenfold methods``: the methods, and what can be set on each."""

from __future__ import annotations

from dataclasses import asdict

from tenfold.cli import tables
from tenfold.cli.command import Outcome, verb
from tenfold.cli.docs import about, field_docs
from tenfold.methods import list_methods

NAME = "methods"
EXAMPLES = "Examples:\n\ntenfold methods\n\ntenfold compress runs/a --method alds --set measure=fro ..."


@verb
def command() -> Outcome:
    """List the methods and their fields: name, type, default, meaning. --set FIELD=VALUE changes one."""
    shown, body = [], {}
    for name, kind in list_methods().items():
        fields = field_docs(kind)
        body[name] = {
            "about": about(kind),
            "needs_budget": kind.needs_budget,
            "fields": [asdict(field) for field in fields],
        }
        made = tables.table(("Field", "Type", "Default", "Meaning"), left=4)
        for field in fields:
            made.add_row(field.name, field.type, field.default, field.doc)
        if not fields:
            made.add_row("none", "", "", "")
        shown.append(tables.titled(f"{name}: {about(kind)}", made))
    return Outcome({"command": NAME, "methods": body}, shown)
