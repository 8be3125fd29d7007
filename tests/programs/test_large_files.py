"""Much data through pipes and files, many small files, and several processes at work on them."""

from scripts import needs, same_script

SORT = r"""
export LC_ALL=C
seq 1500000 -1 1 > numbers; wc -c < numbers
sort -n -S 8M --parallel=2 -T . numbers | sha256sum
sort numbers | uniq | wc -l
gzip -1 -k numbers; gunzip -c numbers.gz | cmp - numbers; echo $?
yes 'a line that is repeated' | head -c 60000000 | gzip -1 | gunzip | tail -c 20
split -n l/4 numbers part; for p in part*; do sort -n $p > $p.s & done; wait; sort -nm part*.s | sha256sum
"""

TREE = r"""
for i in $(seq 20); do mkdir -p d/$i; (cd d/$i; seq 1000 | split -l 25 - f); done
find d -type f | wc -l
find d -type f -print0 | xargs -0 -P4 -n60 sha256sum | sort | sha256sum
tar cf t.tar --sort=name --mtime=@0 --owner=0 --group=0 --mode=644 d; sha256sum < t.tar
tar cf - d | (mkdir x; tar xf - -C x); diff -r d x/d; echo $?
tar czf - --sort=name d | tar tzf - | wc -l
find d -name 'faa' -exec cat {} + | awk '{s += $1} END {print s}'
find d -type f -newer t.tar | wc -l; cp -r d y; rm -r d x; find . -mindepth 1 -maxdepth 1 | sort
find y -name 'fa[b-z]' -delete; find y -type f | wc -l; ls -R y | wc -l; du -s --inodes y | cut -f1
"""

DD = r"""
dd if=/dev/urandom of=r bs=1M count=24 2>/dev/null; dd if=r of=c bs=4k 2>/dev/null; cmp r c; echo $?
dd if=r bs=64k 2>/dev/null | dd bs=3k iflag=fullblock 2>/dev/null | cat | cmp - r; echo $?
truncate -s 1G sparse; dd if=/dev/zero of=sparse bs=1 count=1 seek=900M conv=notrunc 2>/dev/null; stat -c %s sparse; tail -c 20 sparse | od -An -tx1
head -c 30000000 /dev/zero | tee >(wc -c > counted) | wc -c; wait; while [ ! -s counted ]; do sleep 0.01; done; cat counted
dd if=/dev/zero of=/dev/full bs=1k count=1 2>/dev/null; echo $?
mkfifo pipe; dd bs=1 of=copied 2>said < pipe & p=$!; exec 3> pipe; printf x >&3
until [ -s copied ]; do sleep 0.01; done; kill -USR1 $p; until [ -s said ]; do sleep 0.01; done
printf yz >&3; exec 3>&-; wait $p; echo $?; cat copied; grep records said
"""

COMPRESS = r"""
seq 300000 > n; sha256sum < n
xz -T2 -1 -k n; xz -dc n.xz | sha256sum
bzip2 -1 -k n; bzip2 -dc n.bz2 | sha256sum
tar cJf n.tar.xz n; tar xOf n.tar.xz | sha256sum
xz -dc n.bz2 2>/dev/null; echo $?
"""


def test_sort_and_gzip(platform, tmp_path):
    """11 MB of numbers, sorted in pieces on disk by two threads."""
    needs("sort", "gzip", "split")
    result = same_script(platform, SORT, tmp_path)
    assert result.stdout.startswith(b"10888896\n"), result


def test_tar_find_and_xargs(platform, tmp_path):
    needs("tar", "gzip", "find", "xargs")
    result = same_script(platform, TREE, tmp_path)
    assert result.stdout.startswith(b"800\n"), result


def test_dd(platform, tmp_path):
    """Large and sparse files, pipes that fill, and a progress report by signal."""
    needs("dd")
    same_script(platform, DD, tmp_path)


def test_compressors(platform, tmp_path):
    needs("xz", "bzip2", "tar")
    same_script(platform, COMPRESS, tmp_path)
