"""A lint: imports point one way. Run by `make check`; prints what is wrong and exits 1.

- In `sentry/`: cli -> control -> state, strace -> syscalls -> kernel -> tty, net, time, mm. What is plain data or an
  interface (`protocol`, `options`, `kernel.state`) is everyone's.
- `sentry/` never imports `platform/`, but `sentry/cli` may inside a function, where something is started.
- What is sans-IO (kernel, tty, net, time, mm, syscalls) imports nothing that reaches the host.
- Nobody imports plain `sentry` or `platform.x`: the one name of a module is `trapline.sentry...`; a second
  name would make a second copy of it. For the same reason `platform/` has no `__init__.py`.

Imports for the type checker alone (`if TYPE_CHECKING`) may point anywhere within `sentry/`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LEVELS = {
    "cli": 6, "control": 5, "strace": 4, "state": 4, "syscalls": 3, "kernel": 2, "tty": 1, "net": 1, "time": 1, "mm": 1
}  # fmt: skip
EVERYONES = {"protocol", "options", "kernel.state"}
SANS_IO = {"kernel", "tty", "net", "time", "mm", "syscalls", "strace"}
HOST = {
    "ptrace", "ctypes", "os", "io", "socket", "select", "selectors", "subprocess", "fcntl", "mmap", "pty",
    "termios", "tty", "threading", "multiprocessing", "trio", "asyncio", "psutil", "resource", "signal",
    "time", "pathlib", "tempfile", "shutil", "platform",
}  # fmt: skip
FOLDERS = ("sentry", "platform", "vdso", "workloads", "tests")


class Import(NamedTuple):
    """One imported module, by its absolute dotted name."""

    name: str
    line: int
    lazy: bool  # inside a function
    typing: bool  # for the type checker alone


def imports(tree: ast.Module) -> Iterator[Import]:
    """All imports of a module; for `from a import b`, both `a` and `a.b` are looked at as `a.b`."""
    yield from _imports(tree, lazy=False, typing=False)


def _imports(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, lazy, typing)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            for alias in child.names:
                yield Import(f"{module}.{alias.name}", child.lineno, lazy, typing)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for inner in child.body:
                yield from _imports(ast.Module([inner], []), lazy, True)
            for inner in child.orelse:
                yield from _imports(ast.Module([inner], []), lazy, typing)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, lazy or inside, typing)


def problems_of(path: Path, root: Path) -> Iterator[str]:
    """What is wrong with the imports of one file."""
    relative = path.relative_to(root)
    top, package = relative.parts[0], relative.parts[1] if len(relative.parts) > 2 else ""
    for found in imports(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        problem = _problem(found, top, package)
        if problem:
            yield f"{relative}:{found.line}: {problem}"


def _problem(found: Import, top: str, package: str) -> str:
    first, _, rest = found.name.partition(".")
    if found.name.startswith("."):
        return "a relative import: use trapline.…"
    if first == "sentry" or (first == "platform" and rest and (top == "platform" or "." in rest)):
        return f"{found.name}: the module's one name is trapline.{found.name}"
    if top != "sentry":
        return ""
    if found.name.startswith("trapline.platform"):
        if package == "cli" and found.lazy:
            return ""
        return f"{found.name}: sentry/ knows nothing of platform/ (sentry/cli may, inside a function)"
    if first in HOST and package in SANS_IO:
        return f"{found.name}: {package} is sans-IO"
    if found.name.startswith("trapline.sentry.") and not found.typing:
        return _direction(found.name.removeprefix("trapline.sentry."), package)
    return ""


def _direction(name: str, package: str) -> str:
    parts = name.split(".")
    if parts[0] in EVERYONES or ".".join(parts[:2]) in EVERYONES or parts[0] == package:
        return ""
    if parts[0] not in LEVELS:
        return f"trapline.sentry.{parts[0]} has no level in tests/import_direction.py"
    # What lies in sentry/ itself is everyone's, so it may import only what is everyone's too.
    if LEVELS[parts[0]] >= LEVELS.get(package, 0):
        return f"{package or 'sentry'} imports {parts[0]}: the other way round"
    return ""


def problems(root: Path) -> list[str]:
    """Everything that is wrong below a project's root."""
    found = []
    if (root / "platform" / "__init__.py").exists():
        found.append("platform/__init__.py: it would shadow the standard library's platform")
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            found += problems_of(path, root)
    return found


def main() -> int:
    """Print the problems; 1 if there are any."""
    found = problems(Path(__file__).resolve().parent.parent)
    print("\n".join(found) if found else "import direction: as it should be")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
