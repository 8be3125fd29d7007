"""A program in a sandbox that is saved while it works, and goes on: as it was left running, or from the image."""

from __future__ import annotations

import random
import shutil
import subprocess
import time

from boxes import PATIENCE, Boxes
from harness import Result, native

#: What becomes of the sandbox at each save.
FORMS = ("resumed", "restored")
#: What a checkpoint says of a sandbox that has ended meanwhile.
_ENDED = (b"is not running", b"has ended", b"hung up")


class SavedProgram:
    """One program. Its output goes to a file that those who restore it pass on."""

    def __init__(self, boxes: Boxes, words: list[str], *flags: str) -> None:
        self.boxes = boxes
        self.words = words
        self.flags = flags
        self.images = 0
        self._output = boxes.path / "output"
        self._errors = boxes.path / "errors"
        self._process = self._start("run", *flags, "--id", "box", "--", *words)

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        with open(self._output, "ab") as output, open(self._errors, "ab") as errors:
            command = self.boxes.command(*words)
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)

    def shown(self) -> bytes:
        return self._output.read_bytes()

    def await_text(self, text: bytes) -> None:
        """Until the program has written this."""
        end = time.monotonic() + PATIENCE
        while text not in self.shown():
            assert self._process.poll() is None, f"it ended before {text!r}: {self.result()}"
            assert time.monotonic() < end, f"not written: {text!r}: {self.result()}"
            time.sleep(0.002)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def save(self, form: str) -> bool:
        """Save it, and go on from the image for "restored"; whether it was still there to be saved."""
        image = self.boxes.path / f"image-{self.images}"
        more = ["--leave-running"] if form == "resumed" else []
        done = self.boxes("checkpoint", "--no-fsync", "--image-path", str(image), *more, "box")
        if done.status:
            said = done.stderr
            assert any(word in said for word in _ENDED) and self._process.wait(60) is not None, done
            return False
        self.images += 1
        if form == "restored":
            assert self._process.wait(60) == 137, self.result()
            self.boxes.good("delete", "box")
            self._process = self._start("restore", "--id", "box", "--image-path", str(image))
            self._await_restore()
        shutil.rmtree(image)
        return True

    def _await_restore(self) -> None:
        """Until it runs, or has ended already."""
        end = time.monotonic() + PATIENCE
        while self._process.poll() is None:
            done = self.boxes("wait", "--restore", "box")
            if done.status == 0:
                return
            assert time.monotonic() < end, (done, self.result())

    def finish(self, timeout: float = 90) -> Result:
        """Its end."""
        self._process.wait(timeout)
        return self.result()

    def result(self) -> Result:
        """What there is so far."""
        status = self._process.poll()
        return Result(-1 if status is None else status % 256, self.shown(), self._errors.read_bytes())

    def close(self) -> None:
        if self._process.poll() is None:
            self.boxes("kill", "box", "KILL")
            self._process.wait(60)


def same_when_saved(
    boxes: Boxes, words: list[str], form: str, *flags: str, at: tuple[bytes, ...] = (), seed: int = 0, saves: int = 2
) -> Result:
    """Native and saved on the way: the same. Saves come when it has written what `at` says, and then `saves` times
    at moments from the seed; at least one has to be made while it works."""
    expected = native(words)
    program = SavedProgram(boxes, words, *flags)
    chance = random.Random(seed)
    try:
        for text in at:
            program.await_text(text)
            assert program.save(form), program.result()
        for _ in range(saves):
            time.sleep(chance.random() * 0.3)  # nobody knows when: that is what is tested
            if program.ended() or not program.save(form):
                break
        actual = program.finish()
    finally:
        program.close()
    told = f"seed {seed}, {program.images} saves\nnative:\n{expected}\n\ntrapline:\n{actual}"
    assert program.images, told
    assert (actual.stdout, actual.stderr, actual.status) == (expected.stdout, expected.stderr, expected.status), told
    return actual
