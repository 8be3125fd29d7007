"""`trapline do`: from options to an exit status."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trapline.platform import bpf, features, guardian, guest_start, namespaces, state_dir
from trapline.sentry.log import say
from trapline.sentry.options import DoOptions
from trapline.sentry.syscalls import registry

if TYPE_CHECKING:
    from trapline.platform.session import Session

FAILED = 125


def run_sandbox(options: DoOptions) -> int:
    """Run a command in a sandbox of its own; the exit status as a shell gives it (128+N for signal N)."""
    try:
        path = state_dir.prepare(options.state_dir)
    except state_dir.StateDirError as error:
        return _fail(str(error))
    state_dir.remove_stale(path)
    watcher = guardian.start(path)
    entry = None
    try:
        entry = state_dir.create(path, options.command, options.platform)
        return _run(options, entry, watcher)
    except state_dir.StateDirError as error:
        return _fail(str(error))
    finally:
        if entry is not None:
            entry.remove()
        watcher.finish()


def _run(options: DoOptions, entry: state_dir.Entry, watcher: guardian.Guardian) -> int:
    use_notifications = options.platform == "seccomp"
    program = bpf.build(registry.effective_table(), options.platform)
    environment = options.environment(dict(os.environb))
    killable = bool(features.Features(options.without).wait_killable_recv)
    cores = options.core_dir is not None
    guest_main = guest_start.make(options.command, environment, program, use_notifications, killable, cores)
    try:
        setup = namespaces.start(options, guest_main, entry.stage)
        # The set-up needs some milliseconds of another process's: import what we need meanwhile.
        from trapline.platform.session import Session

        sandbox = setup.wait()
    except namespaces.SetupError as error:
        return _fail(str(error))
    entry.record_init(sandbox.init_pid)
    watcher.watch(sandbox.init_pidfd, entry.path)
    session: Session | None = None
    try:
        session = Session(options, sandbox, features)
        return session.run()
    except namespaces.SetupError as error:
        return _fail(str(error))
    finally:
        sandbox.kill()
        if session is not None:
            session.reap_all()
        else:
            _reap(sandbox.init_pid)
        sandbox.close()


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def _fail(text: str) -> int:
    say(f"trapline: {text}")
    return FAILED


