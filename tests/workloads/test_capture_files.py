"""Descriptors of another process: taken from outside, and made again. No sandbox is needed for it.

Each kind is made by a process (descriptor_kinds.py) that is then stopped and looked at. It goes on and tells what it
finds, and so does another process that took the kind from the record: both must find the same.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import msgspec
import pytest

from trapline.platform import capture_files, capture_sockets, capture_terminals, namespaces, watched_paths
from trapline.sentry.state.records import Image

PROGRAM = Path(__file__).with_name("descriptor_kinds.py")
sys.path.insert(0, str(PROGRAM.parent))
import descriptor_kinds  # noqa: E402

#: Nobody may not be able to read what would be imported later.
IMPORTED = (capture_sockets, capture_terminals, namespaces, watched_paths, "".encode("idna"))


class Maker:
    """A process that has made its descriptors and waits."""

    def __init__(self, kind: str, where: Path) -> None:
        self.kind, self.where = kind, where
        stdin, self.to = os.pipe()
        self.answers, stdout = os.pipe()
        error = os.open(where.parent / "stderr", os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        command = [sys.executable, "-P", str(PROGRAM), "make", kind]
        self.process = subprocess.Popen(command, cwd=where, stdin=stdin, stdout=stdout, stderr=error)
        self.inherited = {0: stdin, 1: stdout, 2: error}
        self.reader = os.fdopen(self.answers)
        self.fds: list[int] = json.loads(self._line())

    def _line(self) -> str:
        ended = os.pidfd_open(self.process.pid)
        try:
            ready, _, _ = select.select([self.reader, ended], [], [], 60)
        finally:
            os.close(ended)
        line = self.reader.readline() if self.reader in ready else ""
        assert line, (self.where.parent / "stderr").read_text()
        return line

    def capture(self) -> capture_files.Captured:
        """While it is stopped."""
        host = self.process.pid
        os.kill(host, signal.SIGSTOP)
        os.waitid(os.P_PID, host, os.WSTOPPED | os.WNOWAIT)
        try:
            return capture_files.capture([(host, host)], f"/proc/{host}/root", inherited=self.inherited)
        finally:
            os.kill(host, signal.SIGCONT)

    def report(self) -> object:
        os.write(self.to, b"\n")
        os.close(self.inherited[1])
        return json.loads(self._line())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.close()
        os.close(self.to)
        for number in (0, 2):
            os.close(self.inherited[number])


def image_of(found: capture_files.Captured) -> Image:
    return Image(
        files=found.files, tables=found.tables, pipes=found.pipes, sockets=found.sockets,
        terminals=found.terminals, locks=found.locks, ghosts=found.ghosts, shared=found.shared,
    )  # fmt: skip


def save(found: capture_files.Captured, path: Path) -> None:
    """As an image holds it, with what ghosts and memfds hold beside it."""
    path.write_bytes(msgspec.msgpack.encode(image_of(found)))
    for key, handle in found.handles.items():
        with open(f"{path}.{key}", "wb") as out, open(f"/proc/self/fd/{handle}", "rb") as source:
            shutil.copyfileobj(source, out)


def run_restored(kind: str, where: Path, image: Path, fds: list[int]) -> object:
    done = subprocess.run(
        [sys.executable, "-P", str(PROGRAM), "restore", kind, str(image), json.dumps(fds)],
        cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", descriptor_kinds.KINDS)
def test_a_kind_is_found_as_it_was(kind: str, tmp_path: Path) -> None:
    where = tmp_path / "work"
    where.mkdir()
    maker = Maker(kind, where)
    try:
        found = maker.capture()
        assert found.unsavable == []
        again = maker.capture()  # and once more: the first one has changed nothing
        assert len(again.files) == len(found.files)
        again.close()
        save(found, tmp_path / "image")
        found.close()
        # The restored one begins with the files as they were.
        shutil.copytree(where, tmp_path / "before", symlinks=True, copy_function=_copy)
        before = maker.report()
        shutil.rmtree(where)
        os.rename(tmp_path / "before", where)
        restored = run_restored(kind, where, tmp_path / "image", maker.fds)
    finally:
        maker.close()
    found_otherwise = differences(restored, before)
    assert not found_otherwise, "\n".join(found_otherwise)


def differences(one: object, other: object, where: str = "") -> list[str]:
    """Where two reports are not the same."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for index, (a, b) in pairs for text in differences(a, b, f"{where}/{index}")]
    return [] if one == other else [f"{where}: {one} is not {other}"]


def test_sharing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of descriptions between processes and within one, and of a whole table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(bytes(range(100)))
    shared = os.open(tmp_path / "file", os.O_RDONLY)
    own = os.open(tmp_path / "file", os.O_RDONLY)
    children = [_standing(shared, own) for _ in range(2)]
    try:
        found = capture_files.capture([(pid, pid) for pid in children], "/", inherited={})
        one, two = (found.tables[found.table_of[pid]] for pid in children)
        assert one[30].file == one[31].file == two[30].file == two[31].file
        assert one[32].file == two[32].file != one[30].file
        assert len({one[33].file, two[33].file, one[30].file}) == 3  # each has opened it
        assert one[31].close_on_exec and not one[30].close_on_exec
        assert found.unsavable == []
        path = tmp_path / "image"
        save(found, path)
        found.close()
        assert _offsets_after(path, found.table_of[children[0]], found.table_of[children[1]]) == [7, 7, 0, 0]
        assert os.lseek(shared, 0, os.SEEK_CUR) == 0  # the captured ones' has not moved
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(shared)
        os.close(own)


def _standing(shared: int, own: int) -> int:
    """A child that has `shared` as 30 and 31, `own` as 32, and a description of its own as 33; and nothing else."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(shared, 30)
            os.dup2(shared, 31, inheritable=False)
            os.dup2(own, 32)
            os.dup2(os.open("file", os.O_RDONLY), 33)
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd not in (30, 31, 32, 33, tell):
                    try:
                        os.close(fd)
                    except OSError:
                        pass
            os.write(tell, b"x")
            os.close(tell)
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(told, 1) == b"x"
    assert os.read(told, 1) == b""  # its own end is closed
    os.close(told)
    return pid


def _offsets_after(image: Path, first: int, second: int) -> list[int]:
    """Where the descriptions of a second restored process are after a first one has read of 31."""
    script = f"""
import os, sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
import descriptor_kinds, msgspec
from trapline.platform import restore_files
from trapline.sentry.state.records import Image
image = msgspec.msgpack.decode(open({str(image)!r}, "rb").read(), type=Image)
out = os.dup2(1, 20)
pool = restore_files.open_pool(image, 200)
child = os.fork()
if child == 0:
    descriptor_kinds.execute(restore_files.place(image, {first}, pool))
    os.read(31, 7)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
descriptor_kinds.execute(restore_files.place(image, {second}, pool))
os.write(20, repr([os.lseek(fd, 0, os.SEEK_CUR) for fd in (30, 31, 32, 33)]).encode())
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.skipif(os.getuid() != 0, reason="changes users")
@pytest.mark.parametrize("kind", descriptor_kinds.KINDS)
def test_an_ordinary_user_takes_the_same(kind: str) -> None:
    """Both processes are nobody's, and neither has a capability."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        told = _taken_by_nobody(kind, Path(name))
    assert isinstance(told, list), told
    # What a TCP connection has under way is told to who rules the network, as a sentry does that of its sandbox.
    assert [text for text in told if "TCP" not in text] == []
    assert (told != []) == (kind == "internet")


def _taken_by_nobody(kind: str, tmp_path: Path) -> object:
    ready, tell = os.pipe()
    maker = os.fork()
    if maker == 0:
        try:
            _become_nobody(tmp_path)
            descriptor_kinds.KINDS[kind][0](str(tmp_path))
            libc = descriptor_kinds.libc
            libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: a change of the user took it away
            os.write(tell, b"x")
            signal.pause()
        except BaseException:
            os.write(tell, traceback.format_exc().encode())
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 65536) == b"x"
        answer, give = os.pipe()
        looker = os.fork()
        if looker == 0:
            try:
                _become_nobody(tmp_path)
                inherited = {n: n for n in map(int, os.listdir("/proc/self/fd")) if n not in (ready, answer, give)}
                inherited = {n: n for n in inherited if os.path.exists(f"/proc/self/fd/{n}")}
                found = capture_files.capture([(maker, maker)], f"/proc/{maker}/root", inherited=inherited)
                text = json.dumps(found.unsavable)
            except BaseException as error:
                text = json.dumps(repr(error))
            os.write(give, text.encode())
            os._exit(0)
        os.close(give)
        told: object = json.loads(os.read(answer, 65536))
        os.waitpid(looker, 0)
        os.close(answer)
    finally:
        os.kill(maker, signal.SIGKILL)
        os.waitpid(maker, 0)
        os.close(ready)
    return told


def _become_nobody(where: Path) -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    os.chdir(where)


def _copy(source: str, target: str) -> None:
    import stat

    mode = os.lstat(source).st_mode
    if stat.S_ISFIFO(mode):
        os.mkfifo(target)
    elif stat.S_ISSOCK(mode):
        os.mknod(target, mode)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


@pytest.mark.skipif(os.getuid() != 0, reason="makes a pid namespace")
def test_sockets_remember_processes_that_do_not_exist_yet() -> None:
    """SO_PEERCRED and SCM_CREDENTIALS name the saved processes and users, though it is another one that connects."""
    script = """
import ctypes, os, socket, struct
from trapline.platform import restore_files
from trapline.sentry.state.files import Message, Socket, SocketFile
from trapline.sentry.state.records import Image

assert ctypes.CDLL(None).unshare(0x20000000) == 0  # CLONE_NEWPID
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
one = Socket(1, 1, peer=2, state="connected", credentials=(300, 7, 8))
two = Socket(1, 1, peer=1, state="connected", credentials=(500, 0, 0))
two.options, two.queue = [(1, 16, struct.pack("i", 1))], [Message(b"hi", credentials=(4000, 5, 6))]
pool = restore_files.open_pool(Image(files={1: SocketFile(), 2: SocketFile()}, sockets={1: one, 2: two}), 100)
ends = [socket.socket(fileno=pool[key]) for key in (1, 2)]
found = [struct.unpack("3i", end.getsockopt(1, socket.SO_PEERCRED, 12)) for end in ends]
data, ((_, _, sender),), _, _ = ends[1].recvmsg(10, 100)
print([*found, data, struct.unpack("3i", sender)], flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[(300, 7, 8), (500, 0, 0), b'hi', (4000, 5, 6)]\n", done.stderr
