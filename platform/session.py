"""One running sandbox: kernel, dispatcher and platform put together, from the first stop to the last death."""

from __future__ import annotations

import array
import os
import resource
import signal
import socket
from types import ModuleType
from typing import TYPE_CHECKING

from trapline.platform import ptrace_calls as pt
from trapline.platform import vdso_setup
from trapline.platform.caller_terminal import ORPHANED, SHARED, STOPS, CallerTerminal
from trapline.platform.engine import Engine
from trapline.platform.guest_start import Launch
from trapline.platform.namespaces import Sandbox, SetupError
from trapline.platform.notifications import Listener
from trapline.platform.pump import Pump
from trapline.platform.seccomp import SeccompEngine
from trapline.platform.signal_descriptor import SignalDescriptor
from trapline.platform.surroundings import Surroundings
from trapline.platform.task_ids import blocked, read_ids
from trapline.platform.tracee import Tracee
from trapline.platform.vdso_image import VdsoImage
from trapline.platform.vdso_setup import VdsoSetup
from trapline.sentry.kernel import task_clone
from trapline.sentry.kernel.kernel import Kernel
from trapline.sentry.kernel.signals import SIG_IGN
from trapline.sentry.kernel.state import RLIM_INFINITY, KernelState, SigAction, SigInfo
from trapline.sentry.log import Log, say
from trapline.sentry.options import DoOptions
from trapline.sentry.protocol import Gone
from trapline.sentry.syscalls import handlers, table
from trapline.sentry.syscalls.dispatch import Dispatcher
from trapline.sentry.time.parameter_page import ParameterPage
from trapline.sentry.time.timekeeper import MONOTONIC_RAW, NSEC, REALTIME

if TYPE_CHECKING:
    from collections.abc import Callable

    from trapline.platform.checkpoint_attempts import Attempts
    from trapline.platform.checkpoint_file import CheckpointFile
    from trapline.platform.control_target import ControlTarget
    from trapline.platform.detached_terminal import DetachedTerminal
    from trapline.platform.exec_guest import Door
    from trapline.platform.incremental import Incremental
    from trapline.platform.job_control import JobControl
    from trapline.platform.own_terminal import OwnTerminal
    from trapline.platform.page_loader import Loader
    from trapline.platform.watchdog import Watchdog


class Session:
    """See the module."""

    def __init__(
        self,
        options: DoOptions,
        sandbox: Sandbox,
        features: ModuleType,
        terminal: CallerTerminal | None = None,
        own_terminal: OwnTerminal | None = None,
        launch: Launch | None = None,
    ) -> None:
        self.options = options
        self.sandbox = sandbox
        self.launch = launch or Launch(options, bool(features.Features(options.without).wait_killable_recv))
        try:
            self.log = Log(options.log, options.log_format, options.debug)
        except OSError as error:
            raise SetupError(f"the log cannot be written: {options.log}: {error.strerror}") from None
        for note in sandbox.notes:
            self.log.info(note)
        self.surroundings = Surroundings(sandbox.init_pid, options.network == "none")
        self.engine: Engine = SeccompEngine() if options.platform == "seccomp" else Engine()
        state = self._first_state()
        self.kernel = Kernel(self.engine, state)
        self.dispatcher = Dispatcher(self.kernel, handlers.load(self.kernel))
        self.dispatcher.name_of = table.name_of
        self.engine.kernel = self.kernel
        self.engine.init_host = sandbox.init_pid
        if features.Features(options.without).pidns_ioctl:
            self.engine.open_pid_namespace()
        self.engine.cpu_alarms.events = "perf_event" not in options.without
        self.engine.dispatcher = self.dispatcher
        self.engine.log = self.kernel.log = self.log.warning
        self.kernel.tell = self.log.tell
        self.kernel.on_root_exit = self._root_ended
        self.root_status = -1
        #: The first guest stands before its program, until `release`.
        self.held = False
        #: The way into the sandbox's namespaces, where that is kept open; see exec_guest.py.
        self.door: Door | None = None
        #: The terminal of a detached sandbox.
        self.console: DetachedTerminal | None = None
        self.failure = ""  # why the first guest could not execute its program
        #: Look whether it has.
        self.hear_first: Callable[[], None] = lambda: None
        #: It has, or could not, or was killed before.
        self.on_executed: Callable[[], None] = lambda: None
        self.error = ""
        self.killed_by = 0  # the signal that the first guest died of
        self.forwarded = False
        #: Memory of a restored sandbox that is still to come.
        self.loading: Loader | None = None
        self._control: ControlTarget | None = None
        self._attempts: Attempts | None = None
        self._reaped = self._init_ended = False
        self.saved = False  # by a checkpoint that ends the sandbox: all of it is being killed
        self.strangers: set[int] = set()  # children of ours that are no guests, or not yet
        self.signals = SignalDescriptor()
        self._listener: Listener | None = None
        self.sync_wake_up = False
        self._listen(features)
        self._prepare_vdso()
        self.pump = Pump(self.engine, self.signals)
        self.pump.on_signal = self._signal
        if self._listener is not None:
            self.pump.listen(self._listener)
        #: Where guests have a terminal of their own, the caller's has nothing to do with them.
        self.own_terminal = own_terminal
        self.jobs: JobControl | None = None
        if terminal is not None and own_terminal is None:
            from trapline.platform.job_control import JobControl

            self.jobs = JobControl(terminal, self.pump, sandbox.guest_pid, sandbox.own_group)
        self.watchdog = self._watch() if options.watchdog else None
        self.engine.child_ended = self._child_ended  # type: ignore[method-assign]
        self.tracing = None
        if options.strace is not None:
            from trapline.platform.tracing import Tracing

            try:
                self.tracing = Tracing(self.engine, self.dispatcher, options.strace)
            except OSError as error:
                raise SetupError(f"the trace cannot be written: {options.strace.output}: {error.strerror}") from None
        if options.core_dir is not None:
            from trapline.platform.core_dump import CoreDumper

            self.engine.cores = CoreDumper(options.core_dir)
        #: What keeps account of writes since the last checkpoint.
        self.incremental: Incremental | None = None
        #: Where programs inside ask for checkpoints.
        self.checkpoint_file: CheckpointFile | None = None
        if options.checkpoint_dir is not None:
            from trapline.platform.checkpoint_file import CheckpointFile

            self.checkpoint_file = CheckpointFile(self, options.checkpoint_dir)
        if self.launch.marker is not None:
            self.launch.marker.attach(self)
        self.recorder = None
        if options.stats or options.stats_json:
            from trapline.platform.stats import Recorder

            self.recorder = Recorder(self)

    def _first_state(self) -> KernelState:
        """The kernel's, before there is a task."""
        options, sandbox = self.options, self.sandbox
        state = KernelState()
        state.init_uid = os.getuid()
        state.init_sid = 1 if sandbox.own_group == ORPHANED else 0
        state.cpus = options.cpus or len(os.sched_getaffinity(0))
        state.allowed_cpus = sandbox.cpus
        state.clock.rate_num, state.clock.rate_den = options.clock_rate
        if sandbox.own_time:
            state.clock.monotonic_base = sandbox.monotonic_base
            state.clock.boottime_base = sandbox.boottime_base
            drift = self.engine.host_clock(MONOTONIC_RAW) - self.engine.host_monotonic()
            state.clock.raw_base = sandbox.monotonic_base + drift
        else:
            state.clock.monotonic_base = self.engine.host_monotonic()
        return state

    def _image(self) -> VdsoImage:
        """OSError; ValueError."""
        return VdsoImage()

    def _prepare_vdso(self) -> None:
        """One image and page for all programs of this sandbox. Without it guests make real calls."""
        self.engine.hide_vdso = lambda t: vdso_setup.hide(self.engine, t)
        if "vdso" in self.options.without:
            return
        try:
            image = self._image()
        except (OSError, ValueError) as error:
            self.log.warning(f"no vDSO, clocks are read by real calls: {error}")
            return
        page = ParameterPage(image.write_page)
        self.kernel.keeper.publish_to(page.publish, self.sandbox.own_time)
        self.engine.vdso = VdsoSetup(image)

    def _watch(self) -> Watchdog | None:
        from trapline.platform.watchdog import Watchdog

        if any(signal.getitimer(signal.ITIMER_REAL)):
            # Set by the caller before the exec (`perl -e 'alarm 9; exec ...'`), and there is one a process.
            self.log.info("no watchdog: an alarm that trapline was started with has its timer")
            return None
        watchdog = Watchdog(self.options.watchdog, self._stuck, lambda: self.pump.began)
        self.pump.arm, self.pump.disarm = watchdog.arm, watchdog.disarm
        watchdog.idle = self.pump.rest
        return watchdog

    def _stuck(self, line: str, stack: str, first: bool) -> None:
        self.log.warning(f"{line}; all else in the sandbox waits\n{stack}")
        if first and not self.options.log and not self.options.debug:
            self.log.tell(f"{line}; all else in the sandbox waits. Run it with --log FILE to see where")

    def _started(self) -> list[int]:
        """What the first process sends along when it is ready. SetupError."""
        # The sender's credentials come along, so there must be room for both.
        message, ancillary, _, _ = self.sandbox.channel.recvmsg(4096, 256, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if message[:1] != b"L":
            raise SetupError(message[1:].decode(errors="replace") or "the first guest did not start")
        return list(fds)

    def _listen(self, features: ModuleType) -> None:
        fds = self._started()
        if isinstance(self.engine, SeccompEngine):
            offered = features.Features(self.options.without)
            self.sync_wake_up = bool(offered.sync_wake_up)
            self._listener = Listener(fds[0], self.sync_wake_up)
            self.engine.killable = bool(offered.wait_killable_recv)

    # -- the run
    def run(self) -> int:
        """Start the guest's program and serve until it has ended; the exit status."""
        host = self.sandbox.guest_pid
        self._adopt(host)
        self._start_terminal()
        if not self.held:
            self.release()
        self.pump.run()
        self.hear_first()
        if self.jobs is not None:
            self.jobs.closing()
        if self.jobs is not None or self.own_terminal is not None:
            # What is said below is for a terminal that is the caller's again.
            self.sandbox.kill()
            self.reap_all()
        status = self._exit_status()
        self._report()
        return status

    def release(self) -> None:
        """Let the first guest execute its program."""
        self.held = False
        self.sandbox.channel.send(b"g")

    def take_console(self, log: int) -> None:
        """The terminal of a detached sandbox is ours to read; what is shown goes to `log` too."""
        from trapline.platform.detached_terminal import DetachedTerminal

        master, slave = self.sandbox.terminals
        self.console = DetachedTerminal(self.pump, master, slave, log)
        self.sandbox.terminals = []

    def listen(self, listener: socket.socket) -> None:
        """Take a socket's connections for the control server, which nothing is done for until the first one comes."""

        def connected() -> None:
            self.pump.remove(listener.fileno())
            from trapline.sentry.control.server import serve_to_the_end

            self.pump.spawn(lambda: serve_to_the_end(listener, self.control))

        self.pump.add(listener.fileno(), connected)

    @property
    def attempts(self) -> Attempts:
        """What is known of this sandbox's checkpoints, from when somebody asks or it is made from one."""
        if self._attempts is None:
            from trapline.platform.checkpoint_attempts import Attempts

            self._attempts = Attempts(self)
        return self._attempts

    @property
    def control(self) -> ControlTarget:
        """What can be asked of this sandbox, made when somebody asks."""
        if self._control is None:
            from trapline.platform.control_target import ControlTarget

            self._control = ControlTarget(self)
        return self._control

    def ends_with(self) -> set[int]:
        """Host ids of those whose death is the sandbox's."""
        return {self.sandbox.guest_pid, self.sandbox.init_pid}

    def cpu_limit(self, rlimits: dict[str, tuple[int, int]]) -> tuple[int, int]:
        """RLIMIT_CPU of a process that starts: as asked for, or as whoever started us set it."""
        given = rlimits.get("RLIMIT_CPU") or resource.getrlimit(resource.RLIMIT_CPU)
        soft, hard = (RLIM_INFINITY if limit < 0 else limit for limit in given)
        return soft, hard

    def terminal_handle(self) -> int:
        """A descriptor of the first guest's own terminal, -1 where it has none."""
        if self.console is not None:
            return self.console.master
        return self.own_terminal.slave if self.own_terminal is not None else -1

    def _adopt(self, host: int) -> None:
        try:
            pt.call(pt.PTRACE_SEIZE, host, 0, pt.OPTIONS)
        except (Gone, OSError) as error:
            raise SetupError(f"the first guest cannot be traced: {error}") from None
        group, tid, _ = read_ids(host)
        # The session and the group of the caller's are outside, and show as 0.
        sid = tid if self.own_terminal is not None or self.console is not None else 0
        pgid = tid if sid or self.sandbox.own_group != SHARED else 0
        ppid = 1
        if self.sandbox.is_init:
            ppid, sid, pgid = 0, tid, tid
        task = task_clone.first_task(self.kernel, tid, ppid=ppid, pgid=pgid, sid=sid, mask=blocked(host))
        task_group = self.kernel.group(task)
        for number in self.sandbox.ignored:
            task_group.actions[number] = SigAction(handler=SIG_IGN)
        first = Tracee(host, group, tid, task)
        first.listener = self._listener
        self.engine.add(first)
        task_group.cpu_limit = self.cpu_limit(self.options.rlimits)
        if self.options.user is not None and self.options.user.uid != self.engine.own_uid:
            self.kernel.state.users_changed = True
        self.kernel.time_on_start(task_group)
        if self.tracing is not None:
            self.tracing.attach(first, quiet=True)

    def _begin_jobs(self) -> None:
        assert self.jobs is not None
        self.jobs.begin()

    def _start_terminal(self) -> None:
        if self.jobs is not None:
            self._begin_jobs()
        if self.own_terminal is not None:
            try:
                self.own_terminal.start(self.sandbox.terminals, self.kernel.keeper.now(REALTIME) // NSEC)
            except OSError as error:
                raise SetupError(f"the terminal cannot be handed over: {error.strerror}") from None

    def _root_ended(self, status: int) -> None:
        """The first guest is dead: like a container's, its sandbox ends with it."""
        self.root_status = status
        self.pump.done = True

    def _child_ended(self, host: int, status: int) -> bool:
        if self.own_terminal is not None and self.own_terminal.ended(host, status):
            return True  # its guests hear of it by a hangup
        if host in self.strangers:
            self.strangers.discard(host)
            return True
        if host != self.sandbox.init_pid:
            return False
        self._init_ended = True
        if not self.pump.done:
            if self.saved:
                self.root_status = signal.SIGKILL  # as its own end would have told
            else:
                self.error = "the sandbox's init was killed"
            self.pump.done = True
        return True

    def _signal(self, number: int, by_host: bool) -> None:
        """A signal to trapline: somebody sent it, or the host, to trapline's process group (a key of the terminal)."""
        jobs = self.jobs
        if number == signal.SIGCONT:
            if jobs is not None:
                jobs.continued()
            else:
                self._send_root(number)
        elif number in STOPS:
            if jobs is None:
                self._send_root(number)
            elif by_host:
                jobs.key(number)
            else:
                jobs.stop(number)
        elif by_host and jobs is not None:
            jobs.key(number)
        elif not by_host or self.own_terminal is not None or self.sandbox.is_init:
            self._forward(number)

    def _send_root(self, number: int) -> None:
        try:
            self.kernel.send_signal(self.kernel.state.root_tgid, SigInfo(signo=number, code=0, outside=True))
        except (OSError, Gone):
            return

    def _forward(self, number: int) -> None:
        """A signal that somebody sent to trapline itself goes to the first guest; a second one ends the sandbox,
        whatever the guest made of the first."""
        if self.forwarded:
            self.root_status = number
            self.pump.done = True
            return
        self.forwarded = True
        self._send_root(number)

    def reap_all(self) -> None:
        """After the sandbox was killed: take every death, its init's last. The init cannot end before its
        processes are reaped, and a traced one is reaped by its tracer first, also one that was never known
        here (a child whose parent died before its clone was reported)."""
        if self._reaped:
            return
        self._reaped = True
        for host in self.strangers:
            os.kill(host, signal.SIGKILL)
        # A program that was pid 1 has been reaped, and all others before it.
        while not (self.sandbox.is_init and self.root_status >= 0 and self.sandbox.init_pid not in self.engine.tracees):
            if self._init_ended and not self.engine.tracees:
                break
            host, status = pt.wait_for_any()
            if host < 0:
                break
            if status & 0xFF == 0x7F:
                continue  # the stop of a task that is dying
            if host in self.engine.tracees:
                self.engine.serve_stop(host, status)
            elif self.own_terminal is not None:
                self.own_terminal.ended(host, status)
            if host == self.sandbox.init_pid:
                break
        if self.console is not None:
            self.console.finish()
        if self.own_terminal is not None:
            self.own_terminal.finish()
        if self.jobs is not None:
            self.jobs.end(os.WIFSIGNALED(self.root_status))
        if self.watchdog is not None:
            self.watchdog.close()
        if self.incremental is not None:
            self.incremental.close()
        if self.checkpoint_file is not None:
            self.checkpoint_file.close()
        if self.recorder is not None:
            from trapline.platform import stats

            stats.report(self, self.recorder)
        if self.tracing is not None:
            self.tracing.finish()
        self.log.close()

    # -- the end
    def _exit_status(self) -> int:
        try:
            text = self.sandbox.channel.recv(4096, socket.MSG_DONTWAIT).decode(errors="surrogateescape")
        except OSError:
            text = ""
        if text.startswith("X"):
            self.failure = text[1:].partition(" ")[2]
        if self.failure:
            say(f"trapline: {self.failure}")
        if self.error:
            say(f"trapline: {self.error}")
        elif os.WIFSIGNALED(self.root_status):
            self.killed_by = os.WTERMSIG(self.root_status)
        return self.shell_status()

    def shell_status(self) -> int:
        """The exit status of the sandbox, once it has ended."""
        if self.error:
            return 125
        if os.WIFSIGNALED(self.root_status):
            return 128 + os.WTERMSIG(self.root_status)
        return os.WEXITSTATUS(self.root_status)

    def _report(self) -> None:
        for path in self.engine.cores.written if self.engine.cores is not None else ():
            say(f"trapline: core file {path}")
        for crash in self.dispatcher.crashes[:1]:
            more = len(self.dispatcher.crashes) - 1
            rest = f", and {more} more" if more else ""
            where = f"see {self.options.log}" if self.options.log else "run it with --log FILE to see where"
            say(f"trapline: exception in the handler of {crash}{rest}; {where}")

