"""What people see of a plan, a report and a result when they print it, or leave it at the end of a notebook's cell."""

from __future__ import annotations


class Printed:
    """Base class of results that print as short tables, as HTML in a notebook, and as one line in ``repr``.

    The drawing, and rich with it, is loaded when something is shown.
    """

    def __str__(self) -> str:
        """Tables of at most 80 columns: the layers that change most, and the totals."""
        from tenfold.plans import rendering

        return rendering.text(rendering.sheets(self))

    def _repr_html_(self) -> str:
        """The same tables for a notebook."""
        from tenfold.plans import rendering

        return rendering.html(rendering.sheets(self))

    def __repr__(self) -> str:
        """One line: what it is, and the totals."""
        from tenfold.plans import rendering

        return rendering.line(self)
