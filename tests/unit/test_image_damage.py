"""Images that were damaged, or made by somebody who means harm: one line, nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import xxhash
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from image_samples import MEMORY, image, kernel, make, thread

from trapline.sentry.kernel.state import KernelState, ThreadGroup
from trapline.sentry.state import codec, image_check, manifest, pages_meta, schema
from trapline.sentry.state.image_reader import ImageReader
from trapline.sentry.state.image_writer import ImageWriter
from trapline.sentry.state.manifest import Manifest
from trapline.sentry.state.records import Directories, Image, Mapping, OwnFilter, PageRun
from trapline.sentry.state.unusable import UnusableImage

SOME = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    make(folder / "none")
    make(folder / "zstd", "zstd")
    make(folder / "child", parent=folder / "none")
    return [folder / "none", folder / "zstd", folder / "child"]


def files_of(target: Path) -> list[str]:
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


def use(target: Path) -> None:
    """All that a restore does with an image. UnusableImage."""
    with ImageReader(str(target)) as reader:
        image_check.check(reader)
        for each in reader.chain:
            for block in range(each.blocks):
                data = each.read_block(block)
                assert each.verify(block, data)


def expect_unusable(target: Path) -> str:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UnusableImage) as caught:
        use(target)
    assert os.listdir("/proc/self/fd") == before
    text = str(caught.value)
    assert str(target) in text and text.isprintable()
    return text


def test_as_they_are(images: list[Path]) -> None:
    for target in images:
        use(target)


@SOME
@given(data=st.data())
def test_damage_of_a_file(images: list[Path], data: st.DataObject) -> None:
    target = data.draw(st.sampled_from(images))
    name = data.draw(st.sampled_from(files_of(target)))
    path = target / name
    content = path.read_bytes()
    kind = data.draw(st.sampled_from(["flip", "truncate", "grow", "overwrite"]))
    if kind == "flip":
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
    elif kind == "truncate":
        damaged = bytearray(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "grow":
        damaged = bytearray(content + data.draw(st.one_of(st.binary(min_size=1), st.sampled_from([b" ", b"\n"]))))
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=64))
        damaged = bytearray(content[:at] + piece + content[at + len(piece) :])
        if damaged == content:
            return
    path.write_bytes(damaged)
    try:
        expect_unusable(target)
    finally:
        path.write_bytes(content)
    use(target)


@SOME
@given(bit=st.integers(0, pages_meta.BLOCK * 8 - 1))
def test_a_bit_of_a_block(images: list[Path], bit: int) -> None:
    with ImageReader(str(images[0])) as reader:
        block = bytearray(reader.read_block(0))
        assert reader.verify(0, block) and reader.verify(0, memoryview(block))
        assert not reader.verify(1, block) and not reader.verify(-1, block) and not reader.verify(2, block)
        assert not reader.verify(0, block[:-1]) and not reader.verify(0, block + b"\0")
        block[bit // 8] ^= 1 << bit % 8
        assert not reader.verify(0, block)


@pytest.mark.parametrize("how", ["missing", "directory", "link", "pipe", "socketless device"])
def test_files_that_are_something_else(images: list[Path], tmp_path: Path, how: str) -> None:
    for name in [*files_of(images[0]), "ghosts"]:
        target = tmp_path / name.replace("/", "-")
        shutil.copytree(images[0], target)
        path = target / name
        kept = path.rename(target / "kept")
        if how == "directory" and name != "ghosts":
            path.mkdir()
        elif how == "link":
            path.symlink_to(kept)
        elif how == "pipe":
            os.mkfifo(path)
        elif how == "socketless device":
            path.symlink_to("/dev/zero")
        assert name in expect_unusable(target)


def test_a_file_that_changes_after_it_was_checked(target: Path) -> None:
    with ImageReader(str(target)) as reader:
        reader.check_files()
        path = target / "files" / "upper.tar"
        data = bytearray(path.read_bytes())
        with reader.open("files/upper.tar") as file:
            assert file.read() == data
        data[0] ^= 1
        path.write_bytes(data)
        with pytest.raises(UnusableImage, match="damaged or changed"):
            reader.open("files/upper.tar")
        path.write_bytes(data[:-1])
        with pytest.raises(UnusableImage, match="999 bytes, and the manifest says 1000"):
            reader.open("files/upper.tar")
        with pytest.raises(UnusableImage, match="it is missing"):
            reader.open("files/other")


def test_not_even_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "no image" in expect_unusable(tmp_path / "file")
    assert "no such directory" in expect_unusable(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "manifest.json: it is missing" in expect_unusable(tmp_path / "empty")


# -- made to do harm: every checksum is right


def forge(target: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Another manifest."""
    value = codec.from_json((target / manifest.NAME).read_bytes())
    change(value)
    value["checksum"] = manifest.checksum_of(value)
    (target / manifest.NAME).write_bytes(codec.json_text(value))


def forge_file(target: Path, name: str, data: bytes) -> None:
    (target / name).write_bytes(data)

    def change(value: dict[str, object]) -> None:
        files = value["files"]
        assert isinstance(files, dict)
        files[name] = {"size": len(data), "checksum": manifest.checksum_text(xxhash.xxh3_64_intdigest(data))}

    forge(target, change)


@pytest.fixture
def target(images: list[Path], tmp_path: Path) -> Path:
    shutil.copytree(images[0], tmp_path / "image")
    return tmp_path / "image"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "schema 2, by a newer trapline"),
        ({"schema": -1}, "no schema -1"),
        ({"schema": "1"}, "it has no schema"),
        ({"schema": 0}, "not as schema 0 has it"),
        ({"compression": "lz4"}, "no compression lz4"),
        ({"compression": "zstd"}, "does not name pages.img.zst"),
        ({"page_size": 65536}, "pages of 65536 bytes"),
        ({"files": {}}, "does not name kernel.msgpack"),
        ({"command": 5}, "Expected `array`, got `int`"),
        ({"created": 1 << 70}, "out of range"),
        ({"parent": {"path": "\0", "checksum": ""}}, "no such directory"),
        ({"parent": {"path": ".", "checksum": ""}}, "an ancestor of itself"),
        ({"parent": {"path": "../" + "x" * 5000, "checksum": ""}}, "name too long"),
        ({"command": ["\U0010ffffx"]}, "an escape that there is not"),
    ],
)
def test_manifests(target: Path, change: dict[str, object], says: str) -> None:
    forge(target, lambda value: value.update(change))
    assert says.lower() in expect_unusable(target).lower()


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "ghosts/../../x", "", ".", "..", "a//b", "nul\0", "manifest.json", "x" * 300, "\x1b[31m/../y"],
)
def test_names_that_leave_the_directory(target: Path, name: str) -> None:
    (target.parent / "x").write_bytes(b"")

    def change(value: dict[str, object]) -> None:
        files = value["files"]
        assert isinstance(files, dict)
        files[name] = {"size": 0, "checksum": ""}

    forge(target, change)
    assert "cannot be part of an image" in expect_unusable(target)


def test_links_on_the_way_out(target: Path) -> None:
    shutil.move(target / "ghosts", target.parent / "elsewhere")
    (target / "ghosts").symlink_to(target.parent / "elsewhere")
    assert "no regular file in the image's directory" in expect_unusable(target)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"1", b"\xff\xfe", b"[" * 100000, b'{"schema":1}\n', b"null"])
def test_no_manifest_at_all(target: Path, text: bytes) -> None:
    (target / manifest.NAME).write_bytes(text)
    assert "manifest.json: " in expect_unusable(target)


@pytest.mark.parametrize("name", [manifest.KERNEL, manifest.GUESTS])
@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x80\x80", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 100000, b"\x01", b"\xc0",
     msgspec.msgpack.encode({"groups": {"a": 1}, "spaces": 1}), b"\x81\xa6groups\xc4\xff",
     msgspec.msgpack.encode({"spaces": {1: 5}, "clock": "\U0010ffff"})],
)  # fmt: skip
def test_no_record_at_all(target: Path, name: str, data: bytes) -> None:
    forge_file(target, name, data)
    assert name in expect_unusable(target)


@SOME
@given(data=st.data())
def test_records_with_other_bytes_and_right_checksums(images: list[Path], data: st.DataObject) -> None:
    """Whatever stands there: it is read as records that make sense, or it is unusable."""
    source = images[0]
    name = data.draw(st.sampled_from([manifest.KERNEL, manifest.GUESTS]))
    content = bytearray((source / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    manifest_text, kept = (source / manifest.NAME).read_bytes(), (source / name).read_bytes()
    forge_file(source, name, bytes(content))
    try:
        use(source)
    except UnusableImage as error:
        assert str(error).isprintable()
    finally:
        (source / name).write_bytes(kept)
        (source / manifest.NAME).write_bytes(manifest_text)


def meta_of(target: Path) -> pages_meta.PagesMeta:
    return pages_meta.decode((target / manifest.META).read_bytes())


@SOME
@given(data=st.data())
@example(data=None)
def test_page_tables_with_other_bytes_and_right_checksums(images: list[Path], data: st.DataObject | None) -> None:
    source = images[1]
    kept, manifest_text = (source / manifest.META).read_bytes(), (source / manifest.NAME).read_bytes()
    content = bytearray(kept[:-8])
    if data is not None:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) // 8 - 1))
            word = data.draw(st.one_of(st.integers(0, 20), st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 63, 4096])))
            content[8 * at : 8 * at + 8] = word.to_bytes(8, "little")
    content += xxhash.xxh3_64_intdigest(content).to_bytes(8, "little")
    forge_file(source, manifest.META, bytes(content))
    try:
        use(source)
    except UnusableImage as error:
        assert str(error).isprintable()
    finally:
        (source / manifest.META).write_bytes(kept)
        (source / manifest.NAME).write_bytes(manifest_text)


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([PageRun("s1", MEMORY, 4096, 1 << 40)], "not within any file of pages"),
        ([PageRun("s1", MEMORY, 4096, 0, 1)], "not within any file of pages"),
        ([PageRun("s1", MEMORY, 4096, 0), PageRun("s1", MEMORY, 8192, 0)], "two runs of pages"),
        ([PageRun("s1", MEMORY + 1, 4096, 0)], "makes no sense"),
        ([PageRun("s1", MEMORY, 0, 0)], "makes no sense"),
        ([PageRun("s1", 1 << 63, 4096, 0)], "makes no sense"),
        ([PageRun("s5", MEMORY, 4096, 0)], "refers to the memory s5"),
        ([PageRun("s1", 0x5000, 4096, 0)], "nothing that is mapped"),
        ([PageRun("shm:1:2", 8192, 4096, 0)], "nothing that is mapped"),
    ],
)
def test_runs(target: Path, runs: list[PageRun], says: str) -> None:
    meta = meta_of(target)
    meta.runs = runs
    forge_file(target, manifest.META, pages_meta.encode(meta))
    assert says in expect_unusable(target)


def test_frames_that_claim_to_be_large(images: list[Path], tmp_path: Path) -> None:
    """A frame's header says how much memory its content needs."""
    import zstandard

    shutil.copytree(images[1], tmp_path / "image")
    target = tmp_path / "image"
    frame = bytearray(zstandard.ZstdCompressor().compress(b"x" * 100000))
    huge = frame[:4] + bytes([0xC0 | 0x20]) + (1 << 50).to_bytes(8, "little") + b"\x01\0\0"
    stored = bytes(huge)
    (target / "pages.img.zst").write_bytes(stored)
    meta = meta_of(target)
    meta.frames = [0, len(stored)] * meta.blocks
    forge_file(target, manifest.META, pages_meta.encode(meta))

    def change(value: dict[str, object]) -> None:
        value["files"]["pages.img.zst"]["size"] = len(stored)  # type: ignore[index]

    forge(target, change)
    assert "block 0" in expect_unusable(target)


# -- records that make no sense together


def mapping(image: Image) -> Mapping:
    return image.spaces[1].mappings[0]


#: What is changed, and what is said of it.
NONSENSE: list[tuple[str, Callable[[Image], object], str]] = [
    ("page", lambda i: setattr(mapping(i), "end", MEMORY + 5), "can be no mapping"),
    ("empty", lambda i: setattr(mapping(i), "end", MEMORY), "can be no mapping"),
    ("beyond", lambda i: setattr(i.spaces[1].mappings[2], "end", 1 << 47), "can be no mapping"),
    ("negative", lambda i: setattr(mapping(i), "start", -4096), "can be no mapping"),
    ("overlap", lambda i: i.spaces[1].mappings.append(Mapping(MEMORY, MEMORY + 4096, 0, "anonymous")), "two mappings"),
    ("kind", lambda i: setattr(mapping(i), "kind", "x\n"), "kind 'x?'"),
    ("protection", lambda i: setattr(mapping(i), "prot", 8), "protection"),
    ("offset", lambda i: setattr(mapping(i), "offset", 5), "cannot begin at 5"),
    ("shared key", lambda i: i.shared.clear(), "shared memory shm:1:2"),
    ("ghost key", lambda i: i.ghosts.clear(), "nameless file 1"),
    ("ghost content", lambda i: i.ghosts.update({"2": i.ghosts["1"]}), "ghosts/2"),
    ("ghost way out", lambda i: i.ghosts.update({"../manifest.json": i.ghosts["1"]}), "ghosts/"),
    ("program", lambda i: setattr(i.spaces[1], "exe_ghost", "5"), "nameless file 5"),
    ("guard pages", lambda i: mapping(i).guards.append((0, 4096)), "guard pages"),
    ("file", lambda i: setattr(i.spaces[1].mappings[1], "path", "relative"), "no absolute path"),
    ("nul", lambda i: setattr(i.spaces[1].mappings[1], "path", "/a\0b"), "cannot be a name"),
    ("layout", lambda i: i.spaces[1].layout.pop(), "10 words"),
    ("layout word", lambda i: i.spaces[1].layout.__setitem__(0, 1 << 60), "word of its layout"),
    ("auxv", lambda i: setattr(i.spaces[1], "auxv", b"x"), "auxiliary vector"),
    ("space", lambda i: setattr(i.processes[0], "space", 5), "address space 5"),
    ("table", lambda i: setattr(i.processes[0], "table", 5), "table of descriptors 5"),
    ("directory", lambda i: setattr(i.processes[0], "directory", 5), "directory 5"),
    ("cwd", lambda i: i.directories.update({2: Directories("x", "/", 0)}), "no absolute path"),
    ("umask", lambda i: i.directories.update({2: Directories("/", "/", 0o1000)}), "umask"),
    ("pid", lambda i: setattr(i.processes[0], "tgid", (1 << 22) + 1), "id of a process"),
    ("pid 0", lambda i: setattr(i.processes[0], "tgid", 0), "id of a process"),
    ("pid twice", lambda i: setattr(i.processes[1], "tgid", 7), "two processes have the id 7"),
    ("tid twice", lambda i: setattr(i.processes[0].threads[1], "tid", 7), "two threads have the id 7"),
    ("tid of another", lambda i: setattr(i.processes[0].threads[1], "tid", 8), "two threads have the id 8"),
    ("tid", lambda i: setattr(i.processes[0].threads[1], "tid", 1 << 23), "id of a thread"),
    ("leader", lambda i: i.processes[0].threads.reverse(), "leader"),
    ("no thread", lambda i: i.processes[0].threads.clear(), "has no thread"),
    ("zombie", lambda i: i.processes[1].threads.append(thread(8)), "has ended, and has threads"),
    ("parent", lambda i: setattr(i.processes[0], "parent", 55), "child of 55"),
    ("cycle", lambda i: setattr(i.processes[0], "parent", 8), "ancestor of itself"),
    ("own child", lambda i: setattr(i.processes[0], "parent", 7), "ancestor of itself"),
    ("registers", lambda i: setattr(i.processes[0].threads[0], "registers", b""), "registers"),
    ("extended", lambda i: setattr(i.processes[0].threads[0], "extended", bytes(100)), "extended state"),
    ("affinity", lambda i: i.processes[0].threads[0].affinity.append(-1), "CPU"),
    ("nice", lambda i: setattr(i.processes[0].threads[0], "nice", 99), "nice"),
    ("uid", lambda i: setattr(i.processes[0].threads[0], "uids", (0, 0, 0, -1)), "32 bits"),
    ("filter", lambda i: i.processes[0].threads[0].filters.append(OwnFilter(b"x")), "seccomp filter"),
    ("filter's flags", lambda i: i.processes[0].threads[0].filters.append(OwnFilter(bytes(8), 8)), "has flags 0x8"),
    ("limit", lambda i: i.processes[0].limits.update({99: (0, 0)}), "resource"),
    ("comm", lambda i: setattr(i.processes[0], "comm", bytes(99)), "name"),
    ("vdso", lambda i: i.vdso_host.append((1, 1 << 40)), "host's vDSO"),
    ("huge", lambda i: setattr(i.shared["shm:1:2"], "huge", 64), "pages of 2^64"),
    ("shared size", lambda i: setattr(i.shared["shm:1:2"], "size", -1), "size"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), [entry[1:] for entry in NONSENSE], ids=[entry[0] for entry in NONSENSE])
def test_nonsense(target: Path, change: Callable[[Image], object], says: str) -> None:
    record = image()
    change(record)
    forge_file(target, manifest.GUESTS, codec.pack(record))
    assert says in expect_unusable(target)


KERNEL_NONSENSE: list[tuple[str, Callable[[KernelState], object], str]] = [
    ("unknown process", lambda k: k.groups.pop(7), "knows nothing of process 7"),
    ("unknown to the host", lambda k: k.groups.update({55: ThreadGroup(55, ppid=7)}), "knows of process 55, which there is not"),
    ("no rate", lambda k: setattr(k.clock, "rate_den", 0), "rate's divisor cannot be 0"),
    ("time", lambda k: setattr(k.clock, "tai_delta", 1 << 63), "a time of the clocks"),
    ("unknown thread", lambda k: k.groups[7].threads.pop(9), "knows nothing of thread 9"),
    ("other id", lambda k: setattr(k.groups[7], "tgid", 5), "written down as 5"),
    ("other thread id", lambda k: setattr(k.groups[7].threads[9], "tid", 5), "written down as 5"),
    ("child", lambda k: k.groups[7].children.update({55: 1}), "child 55"),
    ("report", lambda k: k.groups[7].reports.append((1, 55)), "child 55"),
    ("parent", lambda k: setattr(k.groups[7], "ppid", 55), "child of 55"),
    ("member", lambda k: k.process_groups[7].update({55: 0}), "process 55"),
    ("signal", lambda k: setattr(k.groups[7].threads[7].pending[0], "signo", 65), "signal cannot be 65"),
    ("schema", lambda k: setattr(k, "schema", 5), "schema 5"),
]


@pytest.mark.parametrize(("change", "says"), [e[1:] for e in KERNEL_NONSENSE], ids=[e[0] for e in KERNEL_NONSENSE])
def test_nonsense_of_the_kernel(target: Path, change: Callable[[KernelState], object], says: str) -> None:
    record = kernel()
    change(record)
    forge_file(target, manifest.KERNEL, codec.pack(record))
    text = expect_unusable(target)
    assert says in text and manifest.KERNEL in text


def test_each_schema_has_its_step() -> None:
    assert sorted(schema.STEPS) == list(range(manifest.SCHEMA)) and KernelState().schema == manifest.SCHEMA


def test_too_many_parents(tmp_path: Path) -> None:
    from trapline.sentry.state.image_writer import DEEPEST, CannotWrite

    previous: str | None = None
    for number in range(DEEPEST + 1):
        target = str(tmp_path / str(number))
        with ImageWriter(target, fsync=False, parent=previous) as writer:
            writer.commit(kernel(), Image(), Manifest())
        previous = target
    with ImageReader(str(previous)) as reader:
        assert len(reader.chain) == DEEPEST + 1
    with pytest.raises(CannotWrite, match="parents already"):
        ImageWriter(str(tmp_path / "more"), parent=previous)
