"""The lint of imports finds what it is there to find, and finds nothing in this project."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import import_direction  # noqa: E402


def test_project_is_clean():
    assert import_direction.problems(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sentry/kernel/x.py", "from trapline.sentry.syscalls import table"),
        ("sentry/time/x.py", "from trapline.sentry.kernel import kernel"),
        ("sentry/x.py", "from trapline.sentry.kernel import kernel"),
        ("sentry/kernel/x.py", "from trapline.platform import bpf"),
        ("sentry/cli/x.py", "from trapline.platform import bpf"),
        ("sentry/kernel/x.py", "def f():\n    import os"),
        ("sentry/syscalls/x.py", "import ctypes"),
        ("sentry/kernel/x.py", "from ptrace.binding import func"),
        ("platform/x.py", "from platform.bpf import build"),
        ("tests/x.py", "import sentry.kernel"),
        ("tests/x.py", "from sentry.kernel import state"),
        ("sentry/kernel/x.py", "from . import state"),
        ("sentry/kernel/x.py", "if TYPE_CHECKING:\n    from trapline.platform import bpf"),
        ("sentry/kernel/x.py", "from trapline.sentry.novel import thing"),
        ("platform/__init__.py", ""),
    ],
)
def test_finds(tmp_path, file, text):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert len(import_direction.problems(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sentry/kernel/x.py", "from trapline.sentry.time import timer_heap"),
        ("sentry/time/x.py", "from trapline.sentry.kernel.state import TimerSetting"),
        ("sentry/time/x.py", "from trapline.sentry.protocol import Platform"),
        ("sentry/x.py", "if TYPE_CHECKING:\n    from trapline.sentry.kernel import kernel"),
        ("sentry/cli/x.py", "def run():\n    from trapline.platform import run"),
        ("sentry/cli/x.py", "import os\nfrom trapline.sentry.syscalls import table"),
        ("platform/x.py", "import ctypes\nfrom trapline.sentry.kernel import kernel"),
        ("workloads/x.py", "import platform"),
    ],
)
def test_allows(tmp_path, file, text):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert import_direction.problems(tmp_path) == []
