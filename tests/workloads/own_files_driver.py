"""Sandboxes whose own files and IPC objects are saved and given to others: `own_files_driver.py USER DIR STEP...`.

A step is a JSON list: the name of the archive to begin with ("" for none), the name of the one to end with, the
command, and further fields of DoOptions. The sandbox is what `namespaces.start` makes: no sentry traces the command, which runs to its end; then its first
process waits, and all is saved. Everything is imported before another user is taken on, who may not go where it lies.
"""

import json
import os
import sys
from typing import NoReturn

import msgspec

from trapline.platform import namespaces
from trapline.platform.capture_ipc import capture_ipc
from trapline.platform.capture_own_files import capture_own_files
from trapline.platform.restore_ipc import IpcRestorer
from trapline.platform.restore_own_files import SavedFiles
from trapline.sentry.options import DoOptions
from trapline.sentry.state.ipc import IpcRecord
from trapline.sentry.state.unsavable import Unsavable
from trapline.sentry.state.unusable import UnusableImage


def first(command: list[str]) -> namespaces.GuestMain:
    def guest_main(channel: object) -> NoReturn:
        child = os.fork()
        if child == 0:
            try:
                os.execvp(command[0], command)
            finally:
                os._exit(127)
        channel.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        channel.recv(1)
        os._exit(0)

    return guest_main


def step(begin: str, end: str, command: list[str], more: dict[str, object]) -> None:
    saved, prepare, keep = None, None, []
    if begin:
        saved = SavedFiles(os.open(begin, os.O_RDONLY | os.O_CLOEXEC))
        with open(begin + ".ipc", "rb") as file:
            record = msgspec.msgpack.decode(file.read(), type=IpcRecord)
        if os.path.exists(begin + ".segments"):
            keep.append(os.open(begin + ".segments", os.O_RDONLY | os.O_CLOEXEC))
        prepare = IpcRestorer(record, *keep).restore
    stage = os.path.abspath("stage")
    os.mkdir(stage)
    try:
        options = msgspec.convert({"command": command, **more}, DoOptions)
        box = namespaces.start(options, first(command), stage, saved=saved, prepare=prepare, keep=keep).wait()
        try:
            if status := int(box.channel.recv(64)):
                sys.exit(f"status {status}")
            if end:
                save(box, end)
        finally:
            box.kill()
            os.waitpid(box.init_pid, 0)
            box.close()
    finally:
        os.rmdir(stage)
        for handle in keep + ([saved.handle] if saved is not None else []):
            os.close(handle)


def save(box: namespaces.Sandbox, end: str) -> None:
    strangers: set[int] = set()
    with open(end, "wb", 0) as file:
        for note in capture_own_files(box, file.write, strangers):
            print("note:", note)

    def append(data: bytes | memoryview) -> None:
        with open(end + ".segments", "ab") as file:
            file.write(data)

    def refuse(text: str) -> None:
        raise Unsavable(text)

    record = capture_ipc(box, append, strangers, refuse)
    with open(end + ".ipc", "wb") as file:
        file.write(msgspec.msgpack.encode(record))
    assert not strangers


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    if os.geteuid() == 0 and sys.argv[1] != "0":
        user = int(sys.argv[1])
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        import ctypes

        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as after an exec by that user
    os.environ.pop("HOME", None)
    for each in sys.argv[3:]:
        sys.stdout.flush()
        try:
            step(*json.loads(each))
        except (UnusableImage, Unsavable, namespaces.SetupError) as error:
            print(f"{type(error).__name__}: {error}")
