"""The default platform: calls by seccomp user notification, control by ptrace.

A notification costs a third of a ptrace stop, so it is for calls that are answered at once. A call that may
wait arrives by a stop, and waits parked (stop_calls.py), where every signal, stop and freeze of the host's
reaches it.

Until it is received here a notification can be cancelled by any signal or freeze: the host issues the call
again, and nobody saw the first. Once received, only a deadly signal ends the wait for its answer
(WAIT_KILLABLE_RECV). What goes wrong otherwise: SEND succeeds while the task is already on its way out with
ERESTARTSYS (seccomp_do_user_notification), so the answer is dropped and the call is made a second time; a
signal is sent twice, a timer made twice. Kernels before 6.17 have this window whatever they are told, and the
form for them (`killable` off) lives with it: docs/limits.md.
"""

from __future__ import annotations

import os
import select

from trapline.platform import pokes
from trapline.platform import ptrace_calls as pt
from trapline.platform.engine import Engine
from trapline.platform.notifications import Listener
from trapline.platform.tracee import Tracee
from trapline.sentry.kernel.block import Reply
from trapline.sentry.protocol import Gone


class SeccompEngine(Engine):
    """See the module."""

    chain = 1  # a stop is rarely followed by another

    def __init__(self) -> None:
        super().__init__()
        self.notifications = 0
        self.cancelled = 0
        #: Whether the host keeps a received call's answer, whatever signals come.
        self.killable = False
        #: Whose /proc/PID/syscall is open, and its descriptor.
        self._call_file = (0, -1)

    def serve_notification(self, listener: Listener) -> None:
        """Receive one notification and serve it. There is one listener for the first guest and what it made, and one
        for each process that came from outside."""
        if self.held_back:
            listener, note = self.held_back.pop(0)
        else:
            received = listener.receive()
            if received is None:
                return
            note = received
        self.notifications += 1
        ident, host, nr, args, ip = note
        t = self.tracees.get(host)
        if t is None or t.task is None:
            return  # it is being killed, or it is the first guest on its way to its first stop
        try:
            self.serving, self.poked_caller = t.tid, 0
            try:
                reply = self.dispatcher.enter(t.task, nr, args, ip)
            finally:
                self.serving = 0
                signo = self.poked_caller
            if signo:
                alone = len(self.kernel.group(t.task).threads) == 1
                if reply == 0 and self.killable and pokes.pokes_itself(t, nr, args, signo, alone):
                    t.self_sent = signo
                    listener.go_on(ident)
                    self.self_poked = host
                    self.serve_self_poked()
                    return
                pokes.poke_thread(t.host_group, t.host, signo)
            if isinstance(reply, int):
                if signo and not self.killable:
                    # A signal to oneself: the poke ends the wait for our answer, and the result is written at
                    # the delivery stop. Answering too would be the race that is told above.
                    self.dispatcher.undelivered(t.task, nr, args, reply)
                elif not listener.answer(ident, reply):
                    self.cancelled += 1
                    self.dispatcher.undelivered(t.task, nr, args, reply)
            elif reply is Reply.HOST:
                listener.go_on(ident)
            else:
                self.dispatcher.cannot_wait(t.task, nr, args)
        except Gone:
            return

    def serve_held_back(self) -> None:
        while self.held_back:
            self.serve_notification(self.held_back[0][0])

    def stack_pointer(self, tid: int) -> int:
        """A notification does not tell it; /proc/PID/syscall of a task that waits does (proc(5)): "NR 6 ARGS SP PC"."""
        if tid != self.serving:
            return super().stack_pointer(tid)
        host = self.find(tid).host
        while True:
            words = self._call_of(host)
            if len(words) == 9:
                return int(words[7], 16)
            if words != [b"running"]:
                raise Gone(tid)
            # On another CPU: it has queued the notification and is on its way to sleep.
            os.sched_yield()

    def _call_of(self, host: int) -> list[bytes]:
        """The words of /proc/PID/syscall. Gone.

        The file is kept open, since opening it costs 8 us of 10: one file, of whoever returned from a handler last.
        """
        if host == self._call_file[0]:
            try:
                return os.pread(self._call_file[1], 256, 0).split()
            except OSError:
                pass  # it is a former task's of this id
        self._close_call_file()
        try:
            fd = os.open(f"/proc/{host}/syscall", os.O_RDONLY | os.O_CLOEXEC)
            self._call_file = (host, fd)
            return os.pread(fd, 256, 0).split()
        except OSError:
            raise Gone(host) from None

    def _close_call_file(self) -> None:
        if self._call_file[1] >= 0:
            os.close(self._call_file[1])
        self._call_file = (0, -1)

    def ended(self, t: Tracee, status: int) -> None:
        if t.host == self._call_file[0]:
            self._close_call_file()

    def await_carrier(self, t: Tracee) -> int:
        """The notification of a task's vDSO stub, which wants a descriptor; its id.

        Other tasks' calls that come first are kept for later, in order. Gone when the task dies instead.
        """
        listener = t.listener
        assert listener is not None
        poller = select.poll()
        poller.register(listener.fd, select.POLLIN)
        while True:
            ready = poller.poll(20)
            if not ready or not ready[0][1] & select.POLLIN:
                status = pt.wait_now(t.host)
                if status is None:
                    os.sched_yield()  # at a hangup: nobody is under its filter any more, and it is about to be dead
                    continue
                if self.put_off_stop(t, status):
                    pt.cont(t.host)
                    continue
                if status & 0xFF != 0x7F:
                    self.deferred.append((t.host, status, pt.last_rusage()))
                raise Gone(t.host)
            note = listener.receive()
            if note is None:
                continue
            if note[1] == t.host:
                return note[0]
            self.held_back.append((listener, note))
