"""An HTML page as a tree, for tests: it is an error to close what is not open."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Node:
    tag: str
    attributes: dict
    children: list = field(default_factory=list)

    def all(self, tag, **attributes):
        """Descendants with this tag and these attributes, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                if tag in ("*", child.tag) and all(child.attributes.get(k) == v for k, v in attributes.items()):
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def one(self, tag, **attributes):
        (found,) = self.all(tag, **attributes)
        return found

    @property
    def text(self):
        return " ".join("".join(c if isinstance(c, str) else f" {c.text} " for c in self.children).split())


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> comes twice"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"</{tag}> at {self.getpos()}, but <{self.open[-1].tag}> is open"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(path):
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> stays open"
    return reader.root


def panels(page):
    """The plots of a report by name, as the page's program reads them."""
    (script,) = page.all("script", id="panels")
    return {panel["id"]: panel for panel in json.loads("".join(script.children))["panels"]}


def rows(table):
    """``(title of the group, cells of the row)`` for each row of a table that has any."""
    title, found = "", []
    for row in table.one("thead").all("tr") + [r for body in table.all("tbody") for r in body.all("tr")]:
        if row.attributes.get("class") == "group":
            title = row.text
        else:
            found.append((title, [cell.text for cell in row.children if isinstance(cell, Node)]))
    return found[1:]
