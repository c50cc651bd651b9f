"""Tables of what was killed and fed, from the result file of ``make stress``."""

from tools.pages.cells import benchmark, markdown


def kills() -> str:
    """How often each case was killed, and how often something was not as promised."""
    rows = []
    for row in benchmark("stress"):
        counts = [str(row["kills"][kind]) for kind in ("at", "moment", "again")]
        rows.append([row["case"], str(row["operations"]), *counts, str(len(row["failures"]))])
    head = ["killed", "file operations", "before one of them", "at a moment", "once more", "promises broken"]
    return markdown(head, rows)


def strangers() -> str:
    """How many files each reader read and refused, and whether one broke it."""
    rows = [
        [row["reader"], f"{row['read']:,}", f"{row['refused']:,}", str(len(row["failures"]))]
        for row in benchmark("stress", "readers")
    ]
    return markdown(["read", "damaged and read", "refused", "neither"], rows)
