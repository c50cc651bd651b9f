"""What docstrings promise: the parameters they list, the errors they name, and first lines that say what a thing is."""

import ast
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import tenfold
from tenfold import errors
from test_surface import PUBLIC as SURFACE

SOURCE = Path(inspect.getfile(tenfold)).parent
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
FOREIGN = {"OSError", "ValueError", "TypeError"}
USERS = {name for names in SURFACE.values() for name in names.split()}
FEW = {True: 1, False: 3}  # so many parameters may go without a list: those of what users call, and of all else
ELSEWHERE = r"(?i)\b(see|as|as in) `"  # where else they are listed
VAGUE = r"(?i)^(of|for|from|what|its?|how|as(?! `))\b|\b(fares?|fared|hungr\w+)\b"
VERBS = {"command"}  # their docstrings are help texts, and each option has its own

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
CLASSES = {node.name: node for tree in TREES.values() for node in tree.body if isinstance(node, ast.ClassDef)}


def documented() -> Iterator[tuple[str, Definition, int]]:
    """Every public class, function and method: where it is, itself, and how many parameters it may leave unlisted."""
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, Definition) and not node.name.startswith("_") and node.name not in VERBS:
                place, few = f"{path.relative_to(SOURCE)}:{node.name}", FEW[node.name in USERS]
                yield place, node, few
                for one in methods(node) if isinstance(node, ast.ClassDef) else ():
                    yield f"{place}.{one.name}", one, sys.maxsize if overrides(node, one.name) else few


def methods(node: ast.ClassDef) -> list[Function]:
    """The public methods of a class that have a docstring: all but overloads and setters."""
    return [x for x in node.body if isinstance(x, Function) and not x.name.startswith("_") and ast.get_docstring(x)]


def bases(node: ast.ClassDef) -> list[ast.ClassDef]:
    return [CLASSES[name] for base in node.bases if (name := ast.unparse(base).partition("[")[0]) in CLASSES]


def overrides(node: ast.ClassDef, name: str) -> bool:
    """Whether a base of tenfold's has the method, and says what its parameters are."""
    return any(name in [one.name for one in methods(base)] or overrides(base, name) for base in bases(node))


def section(doc: str, title: str) -> str:
    """The text of a section in Google's style, without its indentation; empty where there is none."""
    found = re.search(rf"^{title}:\n((?: {{4}}.*\n?|\n)*)", doc, re.MULTILINE)
    return textwrap.dedent(found[1]) if found else ""


def entries(text: str) -> list[str]:
    """What the entries of a section are about, in order."""
    heads = [line.partition(":")[0] for line in text.splitlines() if line and not line.startswith(" ")]
    return [name.strip() for head in heads for name in head.split(",")]


def parameters(node: Definition) -> list[str]:
    """The names of what a function takes, or a class when it is made; those with an underscore are nobody's."""
    if isinstance(node, ast.ClassDef):
        made = [inner for inner in node.body if isinstance(inner, Function) and inner.name == "__init__"]
        return parameters(made[0]) if made else fields(node)
    own = ("self", "cls") if any(ast.unparse(one) == "classmethod" for one in node.decorator_list) else ("self",)
    taken = [*node.args.posonlyargs, *node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
    return [one.arg for one in taken if one and one.arg not in own and not one.arg.startswith("_")]


def fields(node: ast.ClassDef) -> list[str]:
    """The fields of a dataclass that are given when it is made; of any other class, the parameters that it inherits."""
    names = [name for base in bases(node) for name in parameters(base)]
    named = [*node.decorator_list, *(one for one in node.bases if ast.unparse(one) == "NamedTuple")]
    if any(re.search("dataclass|NamedTuple", ast.unparse(one)) for one in named):
        own = [ast.unparse(x) for x in node.body if isinstance(x, ast.AnnAssign)]
        names += [line.partition(":")[0] for line in own if not re.search(r"^_|ClassVar|init=False", line)]
    return list(dict.fromkeys(names))


def raised(node: Definition) -> set[str]:
    """The errors of tenfold that its own body raises, what it calls left out; of a class, those of its making."""
    made = [node]
    if isinstance(node, ast.ClassDef):
        made = [x for x in node.body if isinstance(x, Function) and x.name in ("__init__", "__post_init__")]
    found, todo = set[str](), [line for body in made for line in body.body]
    while todo:
        line = todo.pop()
        if isinstance(line, Definition | ast.Lambda):
            continue
        if isinstance(line, ast.Raise) and isinstance(line.exc, ast.Call):
            found.add(ast.unparse(line.exc.func))
        if isinstance(line, ast.Call) and ast.unparse(line.func) == "check":
            found.add("ArgumentError")
        todo += ast.iter_child_nodes(line)
    return found & ERRORS


PUBLIC = [(place, node, few, ast.get_docstring(node) or "") for place, node, few in documented()]


def test_everything_public_is_found():
    assert {"layers/swap.py:to_dense", "plans/plan.py:Plan.edit"} < {place for place, *_ in PUBLIC}
    assert len([few for _, _, few, _ in PUBLIC if few == FEW[True]]) > 100


def test_lists_of_arguments_name_exactly_the_parameters():
    lists = {place: (entries(section(doc, "Args")), parameters(node)) for place, node, _, doc in PUBLIC}
    assert {place: both for place, both in lists.items() if both[0] and sorted(both[0]) != sorted(both[1])} == {}


def test_many_parameters_are_listed():
    long = [(place, doc) for place, node, few, doc in PUBLIC if len(parameters(node)) > few]
    assert [place for place, doc in long if not section(doc, "Args") and not re.search(ELSEWHERE, doc)] == []


def test_errors_that_a_function_raises_are_named():
    unnamed = {
        place: raised(node) - {*entries(section(doc, "Raises")), *re.findall(r"[Rr]aises? `(\w+)`", doc)}
        for place, node, _, doc in PUBLIC
    }
    assert {place: missing for place, missing in unnamed.items() if missing} == {}


def test_names_of_errors_are_those_of_errors():
    odd = {place: set(entries(section(doc, "Raises"))) - ERRORS - FOREIGN for place, _, _, doc in PUBLIC}
    assert {place: names for place, names in odd.items() if names} == {}


def test_first_lines_are_sentences_about_the_thing():
    """Not a fragment that hangs on the name: "of the layer", "what it does", "as it was"."""
    firsts = {place: doc.partition("\n")[0] for place, _, _, doc in PUBLIC}
    assert {place: line for place, line in firsts.items() if re.search(VAGUE, line)} == {}


def resolves(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (AttributeError, ImportError):
        return False
    return True


def test_what_docstrings_refer_to_exists():
    docs = [
        (path.name, ast.get_docstring(node) or "")
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, Definition | ast.Module)
    ]
    names = {(place, name) for place, doc in docs for name in re.findall(r"(?<!`)`(tenfold[.][\w.]+)`", doc)}
    assert len(names) > 50
    assert {(place, name) for place, name in names if not resolves(name)} == set()
