"""What a guest does with its own files and IPC objects, and what it sees of them: `own_files_guest.py change|list DIR...`.

Runs inside of a sandbox by any Python of the host's, with no module that is not standard. The list says everything that
a checkpoint has to keep, one line a file.
"""

import hashlib
import os
import socket
import stat
import sys


def change(tree: str, is_root: bool) -> None:
    """`tree` is a directory of the host's with some content (see test_own_files.py)."""
    os.chdir(tree)
    write("new", b"new\n")
    with open("old", "ab") as file:
        file.write(b"and more")
    os.unlink("gone")
    os.unlink("dir/gone")
    os.rename("moved", "dir/here")
    os.chmod("closed", 0)
    os.chmod("set", 0o4711)
    os.link("new", "dir/link")
    os.link("new", "third")
    os.symlink("nowhere/at all", "symlink")
    os.symlink("x" * 300, "long symlink")
    os.mkfifo("fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("socket")
    for name in os.listdir("replaced"):
        os.unlink(f"replaced/{name}")
    os.rmdir("replaced")
    os.mkdir("replaced")  # opaque
    write("replaced/own", b"own")
    try:
        os.rename("renamed", "renamed to")  # a redirect, where the host lets us
    except OSError:
        pass
    deep = "deep"
    for _ in range(12):
        os.mkdir(deep)
        deep += "/" + "d" * 100
    write("a" * 255, b"")
    write("bytes \udcff\udc80 and\nmore = %", b"\0" * 100)
    write("empty", b"")
    write("large", os.urandom(3 << 20) + b"tail")
    with open("sparse", "wb") as file:
        for start in (1 << 20, 5 << 20):
            file.seek(start)
            file.write(b"here")
        file.truncate(64 << 20)
    for name in ("old", "dir", "new"):
        try:
            os.setxattr(name, "user.note=%", b"\n=\0 value")
        except OSError:
            pass  # a kernel whose tmpfs has none
    os.utime("new", ns=(1_000_000_007, 1_234_567_890_123_456_789))
    os.utime("empty", ns=(5, -1_500_000_001))
    os.utime("symlink", ns=(6_000_000_001, 7_000_000_002), follow_symlinks=False)
    os.mkdir("old times")
    write("old times/file", b"")
    os.utime("old times", ns=(11, 12))
    os.mkdir("closed directory", 0o700)
    write("closed directory/inside", b"inside")
    os.chmod("closed directory", 0)
    os.mkdir("/dev/shm/a")
    write("/dev/shm/a/b", b"shared memory")
    write("/tmp/trapline-own-top", b"at the top of a layer")
    if is_root:
        os.chown("set", 12, 3_000_000_000)
        os.mknod("device", stat.S_IFCHR | 0o606, os.makedev(1, 3))
        os.mknod("/dev/block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
        os.unlink("/dev/full")
        os.symlink("null", "/dev/full")
        os.unlink("/etc/hostname")
        os.chmod("/etc/passwd", 0o600)
        os.chmod("/", 0o750)
        with open("/etc/group", "a") as file:
            file.write("more:x:4711:\n")


def write(name: str, data: bytes) -> None:
    with open(name, "wb") as file:
        file.write(data)


def listing(places: list[str]) -> None:
    for place in places:
        show(place)
        for directory, names, files in os.walk(place):
            names.sort()
            for name in sorted(names + files):
                show(os.path.join(directory, name))


def show(path: str) -> None:
    found = os.lstat(path)
    words = [stat.filemode(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns, found.st_rdev]
    if not stat.S_ISDIR(found.st_mode):
        words += [found.st_nlink, found.st_size]
    if stat.S_ISREG(found.st_mode):
        words.append(found.st_blocks)
        try:
            with open(path, "rb") as file:
                words.append(hashlib.sha256(file.read()).hexdigest())
        except PermissionError:
            words.append("closed")
    if stat.S_ISLNK(found.st_mode):
        words.append(os.readlink(path))
    words += [(name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(os.listxattr(path, follow_symlinks=False))]
    print(ascii(path), *words)


if sys.argv[1] == "change":
    change(sys.argv[2], os.getuid() == 0)
elif sys.argv[1] == "list":
    listing(sys.argv[2:])
elif sys.argv[1] == "changed":
    os.chdir(sys.argv[2])
    write("of the second", b"")
    os.unlink("new")
