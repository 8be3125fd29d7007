"""Servers and their clients: in one sandbox over its own loopback, and over the host's network from outside."""

import http.client
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest
from harness import trapline_command
from scripts import needs, same_script

#: Starts a server from "$@" and does what it is told on standard input.
DRIVER = r"""
"$@" & server=$!
while read -r word; do
    case $word in
        wait) wait $server; echo "ended $?";;
        *) kill -$word $server;;
    esac
done
kill -KILL $server 2>/dev/null
"""

NGINX = """\
daemon off; pid nginx.pid; error_log error.log notice; worker_processes 2; worker_shutdown_timeout 5s;
{user}
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t;
    scgi_temp_path t; default_type text/plain;
    server {{
        listen 127.0.0.1:{port} reuseport;
        location / {{ return 200 "version {version} worker $pid\\n"; }}
        location /file {{ alias {place}/file; sendfile on; }}
        location /missing {{ return 404; }}
    }}
}}
"""

REDIS = r"""
redis-server --port $PORT --bind 127.0.0.1 --save '' --dir . > log 2>&1 & server=$!
until redis-cli -p $PORT ping 2>/dev/null | grep -q PONG; do sleep 0.02; kill -0 $server || exit 9; done
cli="redis-cli -p $PORT"
$cli set number 41; $cli incr number; seq 500 | xargs -n 50 $cli rpush list | tail -1
(echo MULTI; echo INCR number; echo EXEC) | $cli; $cli set short lived px 20; sleep 0.05; $cli exists short
$cli blpop nothing 0.05; (sleep 0.05; $cli rpush later pushed > /dev/null) & $cli blpop later 10; wait $!
timeout 60 $cli subscribe channel > heard & subscriber=$!; until [ "$($cli publish channel hello)" = 1 ]; do sleep 0.02; done
until grep -q hello heard; do sleep 0.02; done; kill $subscriber; wait $subscriber; grep -c hello heard
redis-benchmark -p $PORT -n 10000 -c 20 -q -t set,get,lpush > bench; tr '\r' '\n' < bench | grep -c 'requests per second'
redis-benchmark -p $PORT -n 20000 -c 20 -P 16 -q -t set > bench; tr '\r' '\n' < bench | grep -c 'requests per second'
$cli bgsave | head -c 10; until $cli info persistence | grep -q rdb_last_bgsave_status:ok.*; do sleep 0.02; done
until $cli info persistence | grep -q rdb_bgsave_in_progress:0; do sleep 0.02; done; echo; ls dump.rdb
$cli debug sleep 0 ; kill -TERM $server; wait $server; echo $?; grep -c 'ready to exit' log
"""

TLS = r"""
openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -subj /CN=localhost -days 2 2>/dev/null
openssl s_server -accept $PORT -key key -cert cert -www > /dev/null 2>&1 & server=$!
until echo | openssl s_client -connect 127.0.0.1:$PORT > seen 2>/dev/null; do sleep 0.02; kill -0 $server || exit 9; done
grep -c 'BEGIN CERTIFICATE' seen
curl -sk https://127.0.0.1:$PORT/ | grep -c 'Ciphers supported'
curl -s https://127.0.0.1:$PORT/; echo $?
kill $server; wait $server; echo $?; curl -sk https://127.0.0.1:$PORT/; echo $?
"""


def free_port():
    """A port that nobody has: the kernel's choice, and it takes long until it chooses the same again."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def server(kind, words, port, place):
    """A server under DRIVER, reached at the port; killed at the end, with all that belongs to it."""
    command = ["bash", "-c", DRIVER, "driver", *words]
    if kind != "native":
        command = trapline_command("do", f"--platform={kind}", "--network=host", "--", *command)
    running = subprocess.Popen(
        command, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    try:
        reach(lambda: socket.create_connection(("127.0.0.1", port)).close(), running)
        yield running
    finally:
        running.stdin.close()
        try:
            running.wait(20)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
            running.stdout.close()


def reach(attempt, running=None, seconds=30):
    """Try until it works: its result. What is not there yet refuses the connection or answers otherwise."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (OSError, http.client.HTTPException, AssertionError):
            if time.monotonic() > deadline or (running is not None and running.poll() is not None):
                raise
            time.sleep(0.02)


def tell(running, word):
    running.stdin.write(word + "\n")
    running.stdin.flush()


def get(port, path="/", connection=None):
    made = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    made.request("GET", path)
    answer = made.getresponse()
    body = answer.read()
    if connection is None:
        made.close()
    return answer.status, body


def nginx_seen(kind, place):
    """What a client outside sees of nginx: answers, a reload that loses no connection, a graceful stop."""
    place.mkdir()
    place.chmod(0o755)
    port = free_port()
    (place / "t").mkdir()
    (place / "file").write_bytes(bytes(range(256)) * 2000)

    def configure(version):
        user = "user root;" if os.geteuid() == 0 else ""
        text = NGINX.format(port=port, version=version, place=place, user=user)
        (place / "nginx.conf").write_text(text)

    configure(1)
    seen = []
    with server(kind, ["nginx", "-p", str(place), "-c", str(place / "nginx.conf")], port, place) as running:
        kept = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        seen.append(get(port, "/", kept)[1].split(b" worker")[0])
        before = {get(port)[1].split()[-1] for _ in range(20)}
        seen.append((get(port, "/missing")[0], get(port, "/file")[1] == bytes(range(256)) * 2000))
        configure(2)
        tell(running, "HUP")

        def is_new():
            status, body = get(port)
            assert status == 200 and body.startswith(b"version 2"), body
            return body.split()[-1]

        seen.append(reach(is_new) in before)

        def old_ones_ended():
            """The old workers go on listening beside the new ones until the master has told them to end."""
            assert (place / "error.log").read_text().count("exited with code 0") == 2

        reach(old_ones_ended, running)
        seen.append({get(port)[1].split(b" worker")[0] for _ in range(10)})
        tell(running, "QUIT")
        tell(running, "wait")
        seen.append(running.stdout.readline())
        try:
            get(port)
            seen.append("still there")
        except OSError as error:
            seen.append(type(error).__name__)
        kept.close()
    return seen


def test_nginx(platform, tmp_path):
    needs("nginx")
    expected = nginx_seen("native", tmp_path / "native")
    assert expected == [b"version 1", (404, True), False, {b"version 2"}, "ended 0\n", "ConnectionRefusedError"]
    assert nginx_seen(platform, tmp_path / "emulated") == expected


def test_redis(platform, tmp_path, monkeypatch):
    """Server, command line, subscribers and the benchmark in one sandbox; a save by fork; an orderly end."""
    needs("redis-server", "redis-cli", "redis-benchmark")
    monkeypatch.setenv("PORT", str(free_port()))
    result = same_script(platform, REDIS, tmp_path)
    assert result.stdout.startswith(b"OK\n42\n500\n") and result.stdout.endswith(b"\n0\n1\n"), result


def redis_from_outside(kind, place):
    place.mkdir()
    port = free_port()
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(place)]
    words += ["--logfile", str(place / "log")]
    seen = []
    with server(kind, words, port, place) as running:
        run = ["redis-cli", "-p", str(port)]
        for words in (["set", "a", "1"], ["incr", "a"], ["eval", "return redis.call('get', 'a')", "0"]):
            seen.append(subprocess.run([*run, *words], capture_output=True, timeout=30).stdout)
        bench = ["redis-benchmark", "-p", str(port), "-n", "5000", "-c", "10", "-q", "-t", "get"]
        done = subprocess.run(bench, capture_output=True, timeout=60)
        seen += [done.returncode, b"requests per second" in done.stdout]
        tell(running, "INT")
        tell(running, "wait")
        seen.append(running.stdout.readline())
    return seen


def test_redis_from_outside(platform, tmp_path):
    """Server inside, clients outside, over the host's network."""
    needs("redis-server", "redis-cli", "redis-benchmark")
    expected = redis_from_outside("native", tmp_path / "native")
    assert expected == [b"OK\n", b"2\n", b"2\n", 0, True, "ended 0\n"]
    assert redis_from_outside(platform, tmp_path / "emulated") == expected


def test_client_inside_and_server_outside(platform, tmp_path):
    """curl over --network host."""
    needs("curl", "python3")
    (tmp_path / "page").write_text("page\n" * 5000)
    port = free_port()
    words = ["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with server("native", words, port, tmp_path):
        script = f"curl -sf http://127.0.0.1:{port}/page | sha256sum; curl -sf http://127.0.0.1:{port}/none; echo $?"
        result = same_script(platform, script, tmp_path, "--network=host")
        assert result.stdout.endswith(b"22\n"), result


def test_no_way_out_without_the_hosts_network(platform, tmp_path):
    needs("curl")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        command = trapline_command("do", f"--platform={platform}", "--", "curl", "-s", "-m", "20", url)
        assert subprocess.run(command, cwd=tmp_path, timeout=60).returncode == 7
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_tls(platform, tmp_path, monkeypatch):
    needs("openssl", "curl")
    monkeypatch.setenv("PORT", str(free_port()))
    result = same_script(platform, TLS, tmp_path)
    assert result.stdout == b"1\n1\n60\n143\n7\n", result
