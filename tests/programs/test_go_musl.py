"""Programs that do without glibc: static Go with its own runtime and threads, and musl, static and dynamic."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import do, native, program, same

GO = r"""
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "die" {
		var p *int
		*p = 1
	}
	var wg sync.WaitGroup
	var sum int64
	results := make(chan int, 100)
	for i := 0; i < 100; i++ {
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			time.Sleep(time.Duration(i%5) * time.Millisecond)
			atomic.AddInt64(&sum, int64(i))
			results <- i * i
		}(i)
	}
	wg.Wait()
	close(results)
	total := 0
	for r := range results {
		total += r
	}
	fmt.Println("goroutines", sum, total)

	// Busy goroutines are preempted by signals that the runtime sends to its own threads.
	stop := int32(0)
	for i := 0; i < runtime.GOMAXPROCS(0)+1; i++ {
		go func() {
			for n := 0; atomic.LoadInt32(&stop) == 0; n++ {
			}
		}()
	}
	start := time.Now()
	time.Sleep(50 * time.Millisecond)
	runtime.GC()
	atomic.StoreInt32(&stop, 1)
	fmt.Println("preempted", time.Since(start) >= 50*time.Millisecond)

	ticker := time.NewTicker(5 * time.Millisecond)
	for i := 0; i < 5; i++ {
		<-ticker.C
	}
	ticker.Stop()
	select {
	case <-time.After(20 * time.Millisecond):
		fmt.Println("after")
	case <-make(chan int):
	}
	fired := make(chan bool)
	time.AfterFunc(10*time.Millisecond, func() { fired <- true })
	fmt.Println("timer", <-fired)

	out, err := exec.Command("sh", "-c", "cat; exit 3").CombinedOutput()
	fmt.Println("exec", string(out), err)
	cmd := exec.Command("tr", "a-z", "A-Z")
	cmd.Stdin = bytes.NewReader(bytes.Repeat([]byte("abc"), 50000))
	out, err = cmd.Output()
	fmt.Println("piped", len(out), string(out[:6]), err)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	err = exec.CommandContext(ctx, "sleep", "100").Run()
	cancel()
	fmt.Println("killed", err)
	_, err = exec.Command("/no/such/program").Output()
	fmt.Println("missing", errors.Is(err, os.ErrNotExist))
	var codes []int
	var lock sync.Mutex
	for i := 0; i < 10; i++ {
		wg.Add(1)
		go func(i int) {
			defer wg.Done()
			c := exec.Command("sh", "-c", fmt.Sprint("exit ", i))
			c.Run()
			lock.Lock()
			codes = append(codes, c.ProcessState.ExitCode())
			lock.Unlock()
		}(i)
	}
	wg.Wait()
	sort.Ints(codes)
	fmt.Println("children", codes)

	caught := make(chan os.Signal, 4)
	signal.Notify(caught, syscall.SIGUSR1, syscall.SIGINT)
	syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	fmt.Println("caught", <-caught)
	exec.Command("sh", "-c", "kill -INT $PPID").Run()
	fmt.Println("caught", <-caught)
	signal.Ignore(syscall.SIGINT)
	syscall.Kill(os.Getpid(), syscall.SIGINT)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		go func() {
			c, _ := listener.Accept()
			c.Write([]byte("hello"))
			c.Close()
		}()
		c, err := net.Dial("tcp", listener.Addr().String())
		b := make([]byte, 9)
		n, _ := c.Read(b)
		fmt.Println("net", string(b[:n]), err)
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	}
	defer func() {
		fmt.Println("recovered", recover())
		os.Exit(7)
	}()
	var none map[string]int
	none["x"] = 1
}
"""

MUSL = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
extern char **environ;
static volatile sig_atomic_t seen;
static void on(int s) { seen += s; }
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static long n;
static void *add(void *p) {
    for (int i = 0; i < 10000; i++) { pthread_mutex_lock(&m); n++; pthread_mutex_unlock(&m); }
    return p;
}
static void *sleeper(void *p) { for (;;) pause(); return p; }
int main(int argc, char **argv) {
    setvbuf(stdout, 0, _IONBF, 0);
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], 0, add, 0);
    for (int i = 0; i < 4; i++) pthread_join(t[i], 0);
    printf("threads %ld\n", n);
    pthread_create(&t[0], 0, sleeper, 0);
    pthread_cancel(t[0]);
    void *r; pthread_join(t[0], &r); printf("cancelled %d\n", r == PTHREAD_CANCELED);
    signal(SIGUSR1, on); raise(SIGUSR1); printf("raise %d\n", (int)seen);
    int status; pid_t p = fork();
    if (!p) { usleep(1000); _exit(3); }
    waitpid(p, &status, 0); printf("fork %x\n", status);
    char *args[] = {"sh", "-c", "echo spawned; exit 4", 0};
    /* The child writes to the same pipe: what is printed here must wait for its end, or the order is the scheduler's. */
    int error = posix_spawnp(&p, "sh", 0, 0, args, environ); waitpid(p, &status, 0); printf("spawn %d %x\n", error, status);
    printf("system %x\n", system("kill -9 $$"));
    FILE *f = popen("cat", "w"); fputs("popen\n", f); printf("pclose %x\n", pclose(f));
    struct timespec a, b, w = {0, 20000000};
    clock_gettime(CLOCK_MONOTONIC, &a); nanosleep(&w, 0); clock_gettime(CLOCK_MONOTONIC, &b);
    printf("slept %d\n", (b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec >= 20000000);
    alarm(1); alarm(0); signal(SIGALRM, on); ualarm(10000, 0); pause(); printf("alarm %d\n", (int)seen);
    sigset_t s; sigfillset(&s); sigprocmask(SIG_BLOCK, &s, 0); kill(getpid(), SIGTERM); int got; sigwait(&s, &got);
    printf("sigwait %d\n", got);
    abort();
}
"""


@pytest.fixture(scope="module")
def go_binary(tmp_path_factory):
    """A static Go program; None-free: the tests skip where it cannot be built."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed (apt-get install golang-go)")
    place = tmp_path_factory.mktemp("go")
    (place / "main.go").write_text(GO)
    (place / "go.mod").write_text("module example\n\ngo 1.18\n")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "go-build"
    environment = dict(os.environ, CGO_ENABLED="0", GOCACHE=str(cache), GOTOOLCHAIN="local", GOFLAGS="-mod=mod")
    built = subprocess.run(
        ["go", "build", "-o", "main", "."], cwd=place, env=environment, capture_output=True, timeout=240
    )
    if built.returncode:
        pytest.skip("Go cannot build here: " + built.stderr.decode(errors="replace").strip()[-200:])
    return str(place / "main")


def test_go(platform, go_binary):
    same(platform, [go_binary], timeout=30)


def test_go_crash(platform, go_binary):
    """A fault becomes a Go panic with a trace on standard error, and status 2."""
    expected, actual = native([go_binary, "die"]), do(platform, [go_binary, "die"], timeout=30)
    assert expected.status == actual.status == 2
    assert actual.stderr.splitlines()[0] == expected.stderr.splitlines()[0]


def test_go_toolchain(platform, tmp_path):
    """The Go command itself: a large program with many threads."""
    same(platform, [program("go"), "version"], timeout=30)


@pytest.mark.parametrize("flags", [["-static"], [], ["-static-pie", "-fPIE"]], ids=["static", "dynamic", "static-pie"])
def test_musl(platform, flags, tmp_path):
    (tmp_path / "main.c").write_text(MUSL)
    subprocess.run([program("musl-gcc"), *flags, "-o", "main", "main.c"], cwd=tmp_path, check=True, timeout=60)
    same(platform, ["./main"], cwd=tmp_path, timeout=30)
