"""Scripts that write files: each run gets an empty directory of its own, or the second would see the first's."""

from __future__ import annotations

from pathlib import Path

from harness import Result, do, native, program


def needs(*names: str) -> None:
    """Skip the test when one of these programs is not installed."""
    for name in names:
        program(name)


def same_script(platform: str, script: str, tmp_path: Path, *flags: str, timeout: float = 60) -> Result:
    """Run a bash script natively and under trapline; output and status must agree. The emulated result."""
    runs = []
    for name in ("native", "emulated"):
        place = tmp_path / name
        place.mkdir()
        words = ["bash", "-c", script]
        if name == "native":
            runs.append(native(words, timeout, cwd=place))
        else:
            runs.append(do(platform, words, *flags, timeout=timeout, cwd=place))
    expected, actual = runs
    assert actual.stdout == expected.stdout, f"native:\n{expected}\n\ntrapline:\n{actual}"
    assert actual.status == expected.status, f"native:\n{expected}\n\ntrapline:\n{actual}"
    return actual
