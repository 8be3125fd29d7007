"""Async work beside the guests: the loop moves into trio, and both go on."""

from __future__ import annotations

import sys
from pathlib import Path

from guests import python_file
from harness import native

DRIVER = """
import sys
from trapline.platform import pump
from trapline.sentry.cli.main import main

run = pump.Pump.run

def with_work(self):
    async def beside():
        import trio
        try:
            self.spawn(second)
            await trio.sleep({sleep})
            print("slept", flush=True)
            await trio.sleep_forever()
        finally:
            print("cancelled", flush=True)

    async def second():
        print("second", flush=True)

    if {early}:
        self.spawn(beside)
    else:
        self._serve[self.signals.fd] = once = Once(self._serve[self.signals.fd], lambda: self.spawn(beside))
    run(self)

class Once:
    def __init__(self, serve, also):
        self.serve, self.also = serve, also

    def __call__(self):
        self.serve()
        also, self.also = self.also, lambda: None
        also()

pump.Pump.run = with_work
status = main(["do", "--platform={platform}", "--", "sh", "-c", {command!r}])
print("trio" in sys.modules)
sys.exit(status)
"""


def run(tmp_path: Path, platform: str, command: str, early: bool, sleep: float = 0.05) -> list[str]:
    text = DRIVER.format(platform=platform, command=command, early=early, sleep=sleep)
    result = native(python_file(tmp_path, text))
    assert (result.status, result.stderr) == (3, b""), result
    return result.stdout.decode().split()


def test_it_runs_beside_the_guests_and_ends_with_them(platform: str, tmp_path: Path) -> None:
    """From the start, and when it is spawned by what the loop serves; guests are served in the meantime."""
    for early in (True, False):
        words = run(tmp_path, platform, "sleep 0.3; date +guest; exit 3", early)
        assert words == ["second", "slept", "guest", "cancelled", "True"], (early, words)


def test_without_it_nothing_is_imported(platform: str) -> None:
    text = 'import sys; from trapline.sentry.cli.main import main; main(["do", "--platform=%s", "true"]); print("trio" in sys.modules)'
    assert native([sys.executable, "-c", text % platform]).stdout == b"False\n"
