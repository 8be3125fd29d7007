"""`trapline restore`: a sandbox that begins where an image left off (docs/checkpoint.md).

The image is read and checked before anything is started. Then the sandbox's namespaces are made as those of a new one
are, with its clocks where they are to go on from, and the seed in place of a first guest (seed.py,
restored_session.py). Whatever fails ends in one line, with nothing left.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from trapline.platform import features, first_processes, guest_start, namespaces, seed, state_dir
from trapline.platform.restored_image import RestoredImage
from trapline.sentry.options import ContainerOptions, DoOptions
from trapline.sentry.state import page_places
from trapline.sentry.state.unusable import UnusableImage
from trapline.sentry.syscalls import sys_rusage

if TYPE_CHECKING:
    from trapline.platform.caller_terminal import CallerTerminal
    from trapline.platform.own_terminal import OwnTerminal
    from trapline.platform.session import Session
    from trapline.sentry.options import RestoreOptions


class RestoredSandbox:
    """A `Beginning` (run.py)."""

    def __init__(self, options: DoOptions, loaded: RestoredImage, background: bool = False) -> None:
        self._options = options
        self._loaded = loaded
        self._background = background
        sys_rusage.own()
        self._launch = guest_start.Launch(options, bool(features.Features(options.without).wait_killable_recv))

    @property
    def on_callers_terminal(self) -> bool:
        """Whether it was, or may have been, a job of its caller's shell."""
        return not self._loaded.is_init

    def start(self, entry: state_dir.Entry, terminal: CallerTerminal | None) -> namespaces.Setup:
        loaded = self._loaded
        try:
            with loaded.bar or contextlib.nullcontext():
                loaded.open_pages()
            vdso = loaded.vdso_image()
        except (OSError, ValueError) as error:
            raise namespaces.SetupError(f"the image cannot be loaded: {error}") from None
        _import_for_the_seed()
        own = loaded.own
        assert own is not None
        loaded.plan_clocks()
        own_time = first_processes.has_time_namespace(self._options)
        taken = [(m.start, m.end) for space in loaded.image.spaces.values() for m in space.mappings]
        return namespaces.start(
            self._options,
            seed.make(lambda: _open(loaded, own_time), taken),
            entry.stage,
            terminal=terminal,
            own_group=loaded.has_own_group,
            hostname=self._options.hostname,
            zero=loaded.clocks.zero,
            keep=[*[fd for fds in loaded.pages for fd in fds], vdso.descriptor, *loaded.handles(), *own.keep],
            is_init=loaded.is_init,
            keep_capabilities=True,
            saved=own.files,
            prepare=own.prepare,
        )

    def session(
        self, sandbox: namespaces.Sandbox, terminal: CallerTerminal | None, own: OwnTerminal | None
    ) -> Session:
        from trapline.platform.caller_terminal import SHARED
        from trapline.platform.restored_session import RestoredSession

        if own is None and (self._loaded.is_init or (self._loaded.has_own_group and sandbox.own_group == SHARED)):
            terminal = None  # nothing of it is a job of the caller's shell
        try:
            return RestoredSession(
                self._options, sandbox, features, self._loaded, self._launch, terminal, own, self._background
            )
        except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
            # Relations that no check knows, in an image that somebody has made: it is input to the last.
            what = f"{type(error).__name__}: {error}"
            raise namespaces.SetupError(f"the image's records make no sense together: {what}") from None


def _import_for_the_seed() -> None:
    """What it needs: in the guest's root there is nothing to be imported."""
    import trapline.platform.capture_files
    import trapline.platform.restore_anonymous
    import trapline.platform.restore_files
    import trapline.platform.restore_paths
    import trapline.platform.restore_pipes
    import trapline.platform.restore_shared  # noqa: F401


def _open(loaded: RestoredImage, own_time: bool) -> seed.Pool:
    """In the seed: all that its processes take from the pool."""
    import fcntl

    from trapline.platform import restore_files, restore_shared

    image = loaded.image
    base = restore_files.first_free(image.files, image.tables) + 64

    def read(index: int, offset: int, view: memoryview) -> None:
        if page_places.read(loaded.pages[index], offset, view) < len(view):
            raise UnusableImage("a file of pages became shorter")

    objects = restore_shared.open_shared(image, loaded.runs, read)
    shared = {"vdso": loaded.vdso_image().descriptor, **objects}
    shared = {key: fcntl.fcntl(fd, fcntl.F_DUPFD, base) for key, fd in shared.items()}
    known = {key: shared[f"{key}/w"] for key in image.shared if f"{key}/w" in shared}
    clocks = loaded.seed_clocks(own_time)
    files = restore_files.open_pool(image, base, shared=known, ghosts=loaded.open_ghost, clocks=clocks)
    mapped = restore_shared.open_mapped(image, known)
    shared |= {key: fcntl.fcntl(fd, fcntl.F_DUPFD, base) for key, fd in mapped.items()}
    return seed.Pool(base, files, shared)


def restore_sandbox(options: RestoreOptions) -> int:
    """The exit status as that of `run`; of a detached one 0. StateDirError, SetupError."""
    from trapline.platform import container, run

    try:
        loaded = RestoredImage(options.image_path, options.clock_continue)
    except UnusableImage as error:
        raise namespaces.SetupError(str(error)) from None
    try:
        sandbox = loaded.options
        options.apply(sandbox)
        if options.progress and not options.detach:
            from trapline.platform.progress_bar import Bar

            loaded.bar = Bar()
        beginning = RestoredSandbox(sandbox, loaded, options.background)
        if not options.id:
            return run.run_sandbox(sandbox, beginning)
        made = ContainerOptions(id=options.id, sandbox=sandbox, detach=options.detach, pid_file=options.pid_file)
        return container.run_container(made, beginning)
    finally:
        loaded.close()
