"""Building programs: make's job server, a compiler and linker on several files, other languages' tools."""

from scripts import needs, same_script

MAKE = r"""
mkdir part
for i in $(seq 12); do
    printf 'int f%d(int x) { int s = 0; for (int i = 0; i < x; i++) s += i * %d; return s; }\n' $i $i > part/f$i.c
done
{
    for i in $(seq 12); do echo "int f$i(int);"; done
    printf '#include <stdio.h>\nint main(void) {\n    int s = 0;\n'
    for i in $(seq 12); do echo "    s += f$i(10);"; done
    printf '    printf("%%d\\n", s);\n    return s != 3510;\n}\n'
} > main.c
cat > Makefile <<'M'
OBJECTS := main.o $(patsubst %.c,%.o,$(sort $(wildcard part/*.c)))
all: main below
	./main
main: $(OBJECTS)
	$(CC) -o $@ $(OBJECTS)
below:
	+$(MAKE) -s -C part -f ../below.mk
.PHONY: all below
M
printf 'all: a.done b.done c.done d.done e.done\n%%.done:\n\t@sleep 0.02; echo $* > $@\n' > below.mk
make -s -j4; echo $?
make -s -j4; echo $?
cat part/*.done
echo 'int f3(int x) { return x +; }' > part/f3.c
make -s -j4 main 2>/dev/null; echo $?
make -s -k -j4 main 2>/dev/null; echo $?
make -n -j2 main | wc -l
"""

LINK = r"""
echo 'int a(void) { return 1; }' > a.c
echo 'int b(void) { return 2; }' > b.c
echo 'int shared = 39; int s(void) { return shared; }' > s.c
printf '#include <stdio.h>\nint a(void), b(void), s(void);\nint main(void) { printf("%%d\\n", a() + b() + s()); }\n' > m.c
gcc -O2 -Wall -c a.c b.c m.c; ar rcs libab.a a.o b.o; ranlib libab.a; ar t libab.a
gcc -shared -fPIC -o libs.so s.c
gcc -o m m.o -L. -lab -ls -Wl,-rpath,'$ORIGIN' && ./m
gcc -flto -O2 -o whole m.c a.c b.c s.c && ./whole
gcc -static -o static m.c a.c b.c s.c && ./static
gcc -pipe -g3 -S -o - a.c | grep -c globl
ld -r -o ab.o a.o b.o; nm ab.o | sort; objdump -d m | grep -c call; strip m; ./m; readelf -d m | grep -c NEEDED
gcc -o none m.c 2>/dev/null; echo $?; ld -o none none.o 2>/dev/null; echo $?
sha256sum *.o libab.a
"""

RUST = r"""
cat > h.rs <<'R'
use std::{process::Command, sync::mpsc, thread, time::Duration};
fn main() {
    let (sender, receiver) = mpsc::channel();
    for i in 0..4 {
        let sender = sender.clone();
        thread::spawn(move || { thread::sleep(Duration::from_millis(5)); sender.send(i).unwrap(); });
    }
    println!("{}", (0..4).map(|_| receiver.recv().unwrap()).sum::<i32>());
    println!("{}", receiver.recv_timeout(Duration::from_millis(5)).is_err());
    let done = Command::new("sh").arg("-c").arg("echo out; exit 3").output().unwrap();
    println!("{:?} {:?}", String::from_utf8_lossy(&done.stdout), done.status.code());
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    child.kill().unwrap();
    println!("{}", child.wait().unwrap());
    println!("{}", thread::spawn(|| panic!("thread")).join().is_err());
    std::process::exit(9);
}
R
rustc -O h.rs; echo $?; ./h 2>/dev/null
"""

GO = r"""
export HOME=$PWD GOCACHE=$(dirname $PWD)/cache GOTOOLCHAIN=local GOFLAGS=-mod=mod CGO_ENABLED=0
mkdir m; cd m
printf 'module m\n\ngo 1.18\n' > go.mod
printf 'package main\n\nfunc main() { print("built\\n") }\n' > main.go
go build -o m . && ./m 2>&1
go vet . ; echo $?
echo nonsense >> main.go; go build -o n . 2>/dev/null; echo $?
"""

CMAKE = r"""
printf 'cmake_minimum_required(VERSION 3.10)\nproject(p C)\nadd_executable(p m.c)\nenable_testing()\nadd_test(t p)\n' > CMakeLists.txt
echo 'int main(void) { return 0; }' > m.c
cmake -G Ninja -S . -B b > /dev/null && ninja -C b | tail -1 | cut -c1-5
ctest --test-dir b 2>&1 | grep -c Passed
"""


def test_parallel_make(platform, tmp_path):
    """Twelve files at once with a job server that a make below shares; then a file that does not compile."""
    needs("make", "gcc")
    result = same_script(platform, MAKE, tmp_path)
    assert result.stdout.startswith(b"3510\n0\n3510\n0\na\nb\nc\nd\ne\n2\n2\n"), result


def test_libraries_and_links(platform, tmp_path):
    """Static and shared libraries, a relocatable and a whole-program link: the same bytes come out."""
    needs("gcc", "ar", "ld", "objdump")
    result = same_script(platform, LINK, tmp_path)
    assert result.stdout.startswith(b"a.o\nb.o\n42\n42\n42\n"), result


def test_rust(platform, tmp_path):
    needs("rustc")
    same_script(platform, RUST, tmp_path)


def test_go_build(platform, tmp_path):
    needs("go")
    same_script(platform, GO, tmp_path, f"--volume={tmp_path}", timeout=240)


def test_cmake_and_ninja(platform, tmp_path):
    needs("cmake", "ninja")
    same_script(platform, CMAKE, tmp_path)
