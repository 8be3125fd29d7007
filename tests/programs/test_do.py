"""`trapline do` as a shell's user sees it: streams, statuses, what is shared and what is gone, its flags."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from harness import alive, do, guests_of, is_root, program, trapline_command


def line(platform, *words):
    """The command line of `trapline do`."""
    return trapline_command("do", f"--platform={platform}", *words)


def test_streams_are_separate(platform):
    done = subprocess.run(
        line(platform, "sh", "-c", "tr a-z A-Z; echo error >&2; exit 9"), input=b"in", capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (9, b"IN", b"error\n")


def test_large_streams(platform):
    data = os.urandom(3_000_000)
    done = subprocess.run(line(platform, "sh", "-c", "cat | cat"), input=data, capture_output=True, timeout=30)
    assert done.stdout == data


def test_closed_streams(platform):
    """A descriptor that the caller has closed is closed, or at least nothing of the sentry's."""
    words = " ".join(line(platform, "sh", "-c", "'readlink /proc/self/fd/0; exit 4'"))
    done = subprocess.run(["sh", "-c", words + " <&- 2>&-"], capture_output=True, timeout=30)
    assert done.returncode == 4
    assert b"seccomp" not in done.stdout and b"signalfd" not in done.stdout and b"socket" not in done.stdout


def test_no_descriptor_leaks_into_the_guest(platform):
    assert do(platform, ["ls", "/proc/self/fd"]).stdout.split() == [b"0", b"1", b"2", b"3"]
    read, write = os.pipe()
    os.write(write, b"passed")
    done = subprocess.run(
        line(platform, "bash", "-c", f"head -c6 <&{read}"), pass_fds=[read], capture_output=True, timeout=30
    )
    os.close(read), os.close(write)
    assert done.stdout == b"passed", done


def test_pipes_and_sigpipe(platform, tmp_path):
    (tmp_path / "file").write_text("first\n" + "more\n" * 200_000)
    words = " ".join(line(platform, "cat"))
    script = f"{words} < file | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, timeout=30)
    assert done.stdout == b"first\n141\n" and done.stderr == b"", done
    script = f"seq 5 | {words} | {words} | tail -n 1"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, timeout=30)
    assert done.stdout == b"5\n" and done.stderr == b"", done


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("kill -KILL $$", 137),
        ("kill -SEGV $$", 139),
        ("kill -40 $$", 168),
    ],
)
def test_status(platform, script, status):
    assert do(platform, ["bash", "-c", script]).status == status


def test_statuses_of_what_cannot_start(platform):
    for command, status in (("no-such-command", 127), ("/etc/passwd", 126), ("/", 126)):
        result = do(platform, [command])
        assert result.status == status and result.stdout == b"", result
        assert result.stderr.count(b"\n") == 1 and result.stderr.startswith(b"trapline: "), result


def test_working_directory_is_shared(platform, tmp_path):
    result = do(platform, ["sh", "-c", "pwd; echo made > here; mkdir d"], cwd=tmp_path)
    assert result.stdout.decode() == f"{tmp_path}\n"
    assert (tmp_path / "here").read_text() == "made\n" and (tmp_path / "d").is_dir()


def test_writes_elsewhere_are_gone(platform, tmp_path):
    name = f"trapline-test-{os.getpid()}-{platform}"
    places = ["/etc", "/usr", "/var/tmp", "/"] if is_root() else ["/var/tmp"]
    script = "; ".join(f"echo inside > {p}/{name} && cat {p}/{name}" for p in places)
    if is_root():
        script += "; rm /etc/hostname; mv /etc/passwd /etc/passwd2; ls /etc/hostname 2>/dev/null"
    result = do(platform, ["sh", "-c", script], cwd=tmp_path)
    assert result.stdout == b"inside\n" * len(places), result
    assert not [p for p in places if os.path.exists(f"{p}/{name}")]
    assert os.path.exists("/etc/passwd")
    again = do(platform, ["sh", "-c", f"cat {places[0]}/{name}"], cwd=tmp_path)
    assert again.status == 1


def test_overlay_none(platform, tmp_path):
    place = tmp_path / "other"
    place.mkdir()
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    assert do(platform, ["sh", "-c", f"echo x > {place}/a"], cwd=cwd).status == 0
    assert not (place / "a").exists()
    assert do(platform, ["sh", "-c", f"echo x > {place}/a"], "--overlay=none", cwd=cwd).status == 0
    assert (place / "a").read_text() == "x\n"


def test_environment(platform):
    environment = dict(os.environ, KEPT="kept value", CHANGED="old", EMPTY="")
    script = 'echo "$KEPT|$CHANGED|$ADDED|${EMPTY-unset}"'
    flags = ["--env", "CHANGED=new=er", "--env=ADDED= a b"]
    assert do(platform, ["sh", "-c", script], *flags, env=environment).stdout == b"kept value|new=er| a b|\n"


def test_cwd(platform, tmp_path):
    (tmp_path / "sub").mkdir()
    assert do(platform, ["pwd"], "--cwd=/usr").stdout == b"/usr\n"
    assert do(platform, ["pwd"], "--cwd", "sub", cwd=tmp_path).stdout.decode() == f"{tmp_path}/sub\n"
    result = do(platform, ["pwd"], "--cwd=/no/such/directory")
    assert result.status in (2, 125) and result.stderr.count(b"\n") == 1 and result.stdout == b"", result


def test_volumes(platform, tmp_path):
    for name in ("cwd", "data"):
        (tmp_path / name).mkdir()
    data = tmp_path / "data"
    (data / "file").write_text("content\n")
    where = {"cwd": tmp_path / "cwd"}
    result = do(platform, ["sh", "-c", "cat /v/file; echo new > /v/new"], f"--volume={data}:/v", **where)
    assert result.stdout == b"content\n" and (data / "new").read_text() == "new\n", result
    script = "cat /mnt/v/file; echo x > /mnt/v/file; echo $?; touch /mnt/v/t; rm -f /mnt/v/file; mkdir /mnt/v/d; :"
    result = do(platform, ["sh", "-c", script], f"--volume={data}:/mnt/v:ro", **where)
    assert result.stdout.startswith(b"content\n") and b"Read-only" in result.stderr, result
    assert sorted(os.listdir(data)) == ["file", "new"] and (data / "file").read_text() == "content\n"
    assert do(platform, ["sh", "-c", f"echo same >> {data}/file"], f"--volume={data}", **where).status == 0
    assert (data / "file").read_text() == "content\nsame\n"
    result = do(platform, ["cat", "/v/one"], f"--volume={data}/file:/v/one:ro", f"--volume={data}:/w", **where)
    assert result.stdout == b"content\nsame\n", result
    assert not os.path.exists("/mnt/v") and not os.path.exists("/v")


def test_network(platform):
    script = (
        "import socket; s = socket.socket(); s.settimeout(5)\n"
        "try: s.connect(('127.0.0.1', %d)); print('connected')\n"
        "except OSError as e: print(type(e).__name__)\n"
        "l = socket.create_server(('127.0.0.1', 0)); socket.create_connection(l.getsockname()); print('own')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = ["python3", "-c", script % server.getsockname()[1]]
        assert do(platform, command).stdout == b"ConnectionRefusedError\nown\n"
        assert do(platform, command, "--network=none").stdout == b"ConnectionRefusedError\nown\n"
        assert do(platform, command, "--network=host").stdout == b"connected\nown\n"
    links = ["sh", "-c", "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"]
    assert do(platform, links).stdout == b"lo\n"


def test_rootfs(platform, tmp_path):
    root = tmp_path / "root"
    for name in ("bin", "proc", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy(program("busybox"), root / "bin" / "busybox")
    for name in ("sh", "ls", "cat", "ps", "pwd"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc" / "mark").write_text("in the root\n")
    script = (
        "pwd; cat /etc/mark; echo x > /etc/new; ls /etc; echo y | cat; ls /usr 2>/dev/null; echo $?; ls -d /dev/null"
    )
    result = do(platform, ["/bin/sh", "-c", script], f"--rootfs={root}", cwd=tmp_path)
    assert result.stdout == b"/\nin the root\nmark\nnew\ny\n1\n/dev/null\n", result
    assert os.listdir(root / "etc") == ["mark"]
    result = do(platform, ["sh", "-c", "pwd"], f"--rootfs={root}", "--cwd=/etc", cwd=tmp_path)
    assert result.stdout == b"/etc\n", result
    missing = do(platform, ["bash"], f"--rootfs={root}", cwd=tmp_path)
    assert missing.status == 127 and missing.stderr.count(b"\n") == 1, missing


def test_sandbox_is_its_own(platform):
    """Its own process ids, hostname and System V objects; its own init; nothing of the host's processes."""
    result = do(
        platform, ["sh", "-c", "echo $$; ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; readlink /proc/self/ns/pid"]
    )
    pid, count, _, namespace = result.stdout.decode().split("\n")[:4]
    assert int(pid) < 10 and int(count) < 8
    assert namespace != os.readlink("/proc/self/ns/pid")


@pytest.mark.parametrize("form", ["text", "json"])
def test_log(platform, form, tmp_path):
    """An unknown call is named once, in the log; the guest's own streams stay clean."""
    log = tmp_path / "log"
    script = "import ctypes; c = ctypes.CDLL(None); [c.syscall(999) for _ in range(3)]"
    result = do(platform, ["python3", "-c", script], f"--log={log}", f"--log-format={form}", cwd="/")
    assert result.status == 0 and result.stdout == b"" and result.stderr == b"", result
    lines = [text for text in log.read_text().splitlines() if "999" in text]
    assert len(lines) == 1
    if form == "json":
        assert {"time", "level", "message"} <= set(json.loads(lines[0]))
        assert all(json.loads(text) for text in log.read_text().splitlines())


def test_stats(platform, tmp_path):
    result = do(platform, ["sh", "-c", "kill -0 $$; sleep 0.01"], "--stats")
    assert result.stdout == b"" and b"kill" in result.stderr and b"clock_nanosleep" in result.stderr, result
    file = tmp_path / "stats.json"
    assert do(platform, ["true"], f"--stats-json={file}").stderr == b""
    assert isinstance(json.loads(file.read_text()), dict)


def test_cpus(platform):
    assert do(platform, ["nproc"], "--cpus=1").stdout == b"1\n"


@pytest.mark.parametrize("form", [["--"], []], ids=["--", ""])
def test_flags_of_the_command_are_its_own(platform, form):
    done = subprocess.run(line(platform, *form, "echo", "--env", "-x", "--", "--help"), capture_output=True, timeout=30)
    assert (done.stdout, done.stderr) == (b"--env -x -- --help\n", b"")


BAD = [
    ["--no-such-flag", "true"],
    ["--platfrom=ptrace", "true"],
    ["--platform=kvm", "true"],
    ["--network=bridge", "true"],
    ["--env=NOVALUE", "true"],
    ["--volume=/no/such:/x", "true"],
    ["--volume=/tmp:relative", "true"],
    ["--volume=/tmp:/x:rx", "true"],
    ["--volume=/tmp:/", "true"],
    ["--cpus=0", "true"],
    ["--cpus=many", "true"],
    ["--rootfs=/no/such", "true"],
    ["--log-format=xml", "true"],
    ["--log=/no/such/directory/log", "true"],
    ["--overlay=disk", "true"],
    ["--debug=yes", "true"],
    ["--cwd"],
    ["--", ""],
    [],
]


@pytest.mark.parametrize("words", BAD, ids=" ".join)
def test_bad_flags(words):
    """One line that names the mistake, status 2, and nothing is started."""
    done = subprocess.run(trapline_command("do", *words), capture_output=True, timeout=30)
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.count(b"\n") == 1 and done.stderr.startswith(b"trapline"), done.stderr
    assert b"Traceback" not in done.stderr


def test_help():
    for words in (["do", "--help"], ["--help"], ["help"]):
        done = subprocess.run(trapline_command(*words), capture_output=True, timeout=30)
        assert done.returncode == 0 and b"trapline" in done.stdout and done.stderr == b""


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_to_trapline(platform, signo):
    """It reaches the guest, and the status says so; nothing is left."""
    with subprocess.Popen(line(platform, "sh", "-c", "echo up; exec sleep 100"), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        guests = guests_of(process.pid)
        process.send_signal(signo)
        assert process.wait(10) == 128 + signo
    assert not [g for g in guests if alive(g)]


def test_signal_that_the_guest_handles(platform):
    script = "trap 'echo caught; exit 6' TERM; echo up; while :; do sleep 0.05; done"
    with subprocess.Popen(line(platform, "sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(10) == 6


def test_background_guests_end_with_the_command(platform):
    """Like a container: when the first guest has ended, nothing of the sandbox goes on."""
    start = time.monotonic()
    result = do(platform, ["sh", "-c", "sleep 50 >/dev/null 2>&1 & (setsid sleep 50 >/dev/null 2>&1 &); exit 3"])
    assert result.status == 3 and time.monotonic() - start < 20


def test_inside_itself_is_refused_or_works(platform):
    """Never a hang, never a traceback."""
    result = do(platform, trapline_command("do", "true"), timeout=30)
    assert b"Traceback" not in result.stderr
    assert result.status == 0 or result.stderr.count(b"\n") == 1, result


def test_many_at_once(platform):
    running = [subprocess.Popen(line(platform, "sh", "-c", f"sleep 0.1; exit {n}")) for n in range(6)]
    assert [process.wait(60) for process in running] == list(range(6))
