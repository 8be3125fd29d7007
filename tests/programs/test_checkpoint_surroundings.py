"""What a program with the rights for it changed around it, in the namespaces of its sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from boxes import Boxes
from harness import is_root

pytestmark = pytest.mark.skipif(not is_root(), reason="gives a program capabilities of root's")


def change(boxes: Boxes, command: str) -> None:
    boxes.good("exec", "--cap=CAP_SYS_ADMIN", "--cap=CAP_NET_ADMIN", "box", "sh", "-c", command)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("mount -t tmpfs none /mnt", "a program mounted /mnt, which is not part of an image"),
        ("umount /dev/shm", "a program unmounted /dev/shm, which is not part of an image"),
        ("mount -o remount,ro /dev/shm", "a program changed /dev/shm, which is not part of an image"),
        ("ip link add d0 type veth peer d1", "a program made the network device d1, which is not part of an image"),
        ("ip addr add 10.1.2.3/24 dev lo", "a program made the network address 10.1.2.3, which is not part of an image"),
    ],
)
def test_what_is_changed_is_named(boxes: Boxes, command: str, says: str) -> None:
    boxes.begin("run", "-d", "--id", "box", "--", "sleep", "100")
    change(boxes, command)
    image = str(boxes.path / "image")
    assert says in boxes.bad("checkpoint", "--image-path", image, "box")
    assert not Path(image).exists()
    done = boxes("checkpoint", "--drop", "--image-path", image, "box")
    assert done.status == 0 and f"dropped: {says}" in done.stderr.decode(), done


def test_names_are_kept(boxes: Boxes) -> None:
    boxes.begin("run", "-d", "--id", "box", "--", "sleep", "100")
    change(boxes, "hostname changed; domainname elsewhere")
    boxes.good("checkpoint", "--image-path", str(boxes.path / "image"), "box")
    boxes.begin("restore", "-d", "--id", "again", "--image-path", str(boxes.path / "image"))
    assert boxes.good("exec", "again", "sh", "-c", "hostname; domainname").split() == ["changed", "elsewhere"]
