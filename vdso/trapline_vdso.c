/* The vDSO that guests see: clocks from the host's vDSO, corrected by the sandbox's parameter page.
 *
 * Address space of a guest, low to high (see platform/vdso_image.py, which lays out the memfd):
 *
 *     host vvar pages, host [vdso]    moved down whole, so that their relative addresses stay
 *     ...                             where the host's vvar pages were
 *     parameter page                  MAP_SHARED, read-only, PAGE bytes before the image
 *     this image                      where the host's [vdso] was: AT_SYSINFO_EHDR needs no change
 *
 * Host functions are found by the words `info.host`, distances from `info`. As built they lead to the
 * real system calls, so an image that nobody set up is slow, never wrong.
 *
 * Interface: vdso(7); user side of the sequence counter as in the host's lib/vdso/gettimeofday.c, except
 * that an odd counter leads to the real call instead of spinning: the sentry answers it once it has
 * written, however long it was scheduled away in between.
 */

typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

#define EXPORT __attribute__((visibility("default")))
#define SECTION(name) __attribute__((section(name), used))
#define WEAK_ALIAS(name) __attribute__((weak, alias(name), visibility("default")))
#define barrier() __asm__ volatile("" ::: "memory")

#define PAGE 4096L
#define IMAGE_SIZE 4096L /* the linker script checks it */
#define NSEC 1000000000L

enum { NR_close = 3, NR_mmap = 9, NR_mprotect = 10, NR_munmap = 11, NR_mremap = 25, NR_gettimeofday = 96,
       NR_time = 201, NR_clock_gettime = 228, NR_clock_getres = 229, NR_getcpu = 309 };

struct timespec { i64 sec, nsec; };
struct timeval { i64 sec, usec; };

/* ---- the parameter page; its other side is sentry/time/parameter_page.py */

enum { MODE_NOT_READY = 0, MODE_HOST = 1, MODE_TABLE = 2 };
enum { KIND_CALL = 0, KIND_HOST = 1, KIND_DELTA = 2, KIND_SCALE = 3 };
enum { CLOCKS = 12 };

struct clock {
	u32 kind;
	u32 source;      /* the host clock that it is computed from */
	i64 first;       /* DELTA: seconds to add; SCALE: ns on this clock when the source was `second` */
	i64 second;      /* DELTA: ns to add, 0 .. NSEC-1; SCALE: ns on the source */
};

struct parameters {
	u32 sequence;    /* odd while written */
	u32 mode;
	u32 rate_num, rate_den;
	i64 resolution, coarse_resolution; /* ns */
	struct clock clocks[CLOCKS];
};

extern const volatile struct parameters parameter_page __attribute__((visibility("hidden")));

/* ---- what the platform reads from the image, and writes into its copy: fixed at offset 0x140 */

struct mapping { i64 offset; u64 length; }; /* offset from the base of the host's [vdso] */

enum { HOST_CLOCK_GETTIME, HOST_GETTIMEOFDAY, HOST_TIME, HOST_GETCPU, HOST_FUNCTIONS };

struct info {
	u64 magic;
	u32 version, image_size;
	u32 trampoline, loader_with_call, loader_with_descriptor, loader_end, setup, reserved; /* from `info` */
	i64 host[HOST_FUNCTIONS];                                                             /* from `info` */
	u64 mappings;
	struct mapping mapping[4];
};

extern const volatile struct info trapline_info __attribute__((visibility("hidden")));
extern const char __ehdr_start[] __attribute__((visibility("hidden")));

__asm__(".pushsection .trapline.info,\"a\",@progbits\n"
	".globl trapline_info\n.hidden trapline_info\n"
	"trapline_info:\n"
	"	.ascii \"TRAPVDSO\"\n"
	"	.long 1, 4096\n"
	"	.long trampoline - trapline_info, loader_with_call - trapline_info\n"
	"	.long loader_with_descriptor - trapline_info, loader_end - trapline_info\n"
	"	.long setup_entry - trapline_info, 0\n"
	"	.quad real_clock_gettime - trapline_info, real_gettimeofday - trapline_info\n"
	"	.quad real_time - trapline_info, real_getcpu - trapline_info\n"
	"	.quad 0\n"
	"	.fill 8, 8, 0\n"
	".popsection\n");

/* ---- system calls */

static inline __attribute__((always_inline)) i64
call(i64 number, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f)
{
	i64 result;
	register i64 r10 __asm__("r10") = d;
	register i64 r8 __asm__("r8") = e;
	register i64 r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static inline __attribute__((always_inline)) i64
call3(i64 number, i64 a, i64 b, i64 c)
{
	i64 result;
	__asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

/* Named in the info block above, so they may be neither inlined away nor removed. */
#define REAL __attribute__((noinline, used, visibility("hidden")))
REAL int real_clock_gettime(int id, struct timespec *ts) { return call3(NR_clock_gettime, id, (i64)ts, 0); }
REAL int real_gettimeofday(struct timeval *tv, void *tz) { return call3(NR_gettimeofday, (i64)tv, (i64)tz, 0); }
REAL i64 real_time(i64 *t) { return call3(NR_time, (i64)t, 0, 0); }
REAL int real_getcpu(u32 *cpu, u32 *node, void *cache) { return call3(NR_getcpu, (i64)cpu, (i64)node, (i64)cache); }

#define HOST(index, type) ((type)((const char *)&trapline_info + trapline_info.host[index]))
typedef int (*clock_gettime_fn)(int, struct timespec *);
typedef int (*gettimeofday_fn)(struct timeval *, void *);
typedef i64 (*time_fn)(i64 *);
typedef int (*getcpu_fn)(u32 *, u32 *, void *);

/* ---- clocks
 *
 * Where the host's clocksource can not be read in user space, the host's functions make the system call
 * themselves. The sentry answers a call from there with the host's time and not the sandbox's, or the page
 * would be applied twice. A host word that leads to our own real call is the opposite case: its answer is
 * the sandbox's already. */

static inline int no_host_clock(void)
{
	i64 word = trapline_info.host[HOST_CLOCK_GETTIME];
	return word > -IMAGE_SIZE && word < IMAGE_SIZE;
}

/* floor(distance * num / den). One `div`: the quotient must fit in 64 bits, which the page's writer sees to
 * (rates near 1, distances below centuries). */
static i64 scale(i64 distance, u32 num, u32 den)
{
	u64 high, low, rest;
	u64 size = distance < 0 ? -(u64)distance : (u64)distance;
	__asm__("mul %3" : "=d"(high), "=a"(low) : "1"(size), "r"((u64)num) : "cc");
	if (high >= den)
		return distance; /* would trap */
	__asm__("div %4" : "=d"(rest), "=a"(low) : "0"(high), "1"(low), "r"((u64)den) : "cc");
	if (distance >= 0)
		return low;
	return -(i64)low - (rest != 0); /* coarse clocks lag: their source may lie before the base */
}

static __attribute__((noinline)) int table_gettime(int id, struct timespec *ts)
{
	for (;;) {
		u32 sequence = parameter_page.sequence;
		const volatile struct clock *clock = &parameter_page.clocks[id];
		struct timespec raw;
		u32 kind, source, num, den;
		i64 first, second, ns;

		barrier();
		if ((sequence & 1) || parameter_page.mode != MODE_TABLE || (u32)id >= CLOCKS ||
		    no_host_clock())
			return real_clock_gettime(id, ts);
		kind = clock->kind;
		if (kind == KIND_HOST)
			return HOST(HOST_CLOCK_GETTIME, clock_gettime_fn)(id, ts);
		source = clock->source;
		first = clock->first;
		second = clock->second;
		num = parameter_page.rate_num;
		den = parameter_page.rate_den;
		if (kind != KIND_DELTA && (kind != KIND_SCALE || !den))
			return real_clock_gettime(id, ts);
		if (HOST(HOST_CLOCK_GETTIME, clock_gettime_fn)(source, &raw))
			return real_clock_gettime(id, ts);
		barrier();
		if (parameter_page.sequence != sequence)
			continue;
		if (kind == KIND_DELTA) {
			raw.sec += first;
			raw.nsec += second;
			if (raw.nsec >= NSEC) {
				raw.nsec -= NSEC;
				raw.sec++;
			}
			*ts = raw;
			return 0;
		}
		ns = first + scale(raw.sec * NSEC + raw.nsec - second, num, den);
		raw.sec = ns / NSEC;
		raw.nsec = ns % NSEC;
		if (raw.nsec < 0) {
			raw.nsec += NSEC;
			raw.sec--;
		}
		*ts = raw;
		return 0;
	}
}

EXPORT int __vdso_clock_gettime(int id, struct timespec *ts)
{
	if (__builtin_expect(parameter_page.mode == MODE_HOST, 1))
		return HOST(HOST_CLOCK_GETTIME, clock_gettime_fn)(id, ts);
	return table_gettime(id, ts);
}
WEAK_ALIAS("__vdso_clock_gettime") int clock_gettime(int, struct timespec *);

EXPORT int __vdso_gettimeofday(struct timeval *tv, void *tz)
{
	struct timespec ts;
	u32 mode = parameter_page.mode;

	/* The time zone is the sandbox's own, not the host's. */
	if (mode == MODE_HOST && !tz)
		return HOST(HOST_GETTIMEOFDAY, gettimeofday_fn)(tv, tz);
	if (mode != MODE_TABLE || tz || !tv || table_gettime(0, &ts))
		return real_gettimeofday(tv, tz);
	tv->sec = ts.sec;
	tv->usec = (u64)ts.nsec / 1000;
	return 0;
}
WEAK_ALIAS("__vdso_gettimeofday") int gettimeofday(struct timeval *, void *);

EXPORT i64 __vdso_time(i64 *t)
{
	struct timespec ts;
	u32 mode = parameter_page.mode;

	if (mode == MODE_HOST)
		return HOST(HOST_TIME, time_fn)(t);
	/* The host answers time(2) from the coarse clock: so does this. */
	if (mode != MODE_TABLE || table_gettime(5, &ts))
		return real_time(t);
	if (t)
		*t = ts.sec;
	return ts.sec;
}
WEAK_ALIAS("__vdso_time") i64 time(i64 *);

EXPORT int __vdso_clock_getres(int id, struct timespec *ts)
{
	i64 ns;

	/* REALTIME, MONOTONIC, RAW, BOOTTIME, TAI; the two coarse clocks. Read without the sequence: the two
	 * words are written once. */
	if (parameter_page.mode == MODE_NOT_READY || (u32)id >= CLOCKS || !((0x8f3 >> id) & 1))
		return call3(NR_clock_getres, id, (i64)ts, 0);
	ns = (0x60 >> id) & 1 ? parameter_page.coarse_resolution : parameter_page.resolution;
	if (ts) {
		ts->sec = 0;
		ts->nsec = ns;
	}
	return 0;
}
WEAK_ALIAS("__vdso_clock_getres") int clock_getres(int, struct timespec *);

EXPORT int __vdso_getcpu(u32 *cpu, u32 *node, void *cache)
{
	return HOST(HOST_GETCPU, getcpu_fn)(cpu, node, cache);
}
WEAK_ALIAS("__vdso_getcpu") int getcpu(u32 *, u32 *, void *);

/* A signal restorer. The byte sequence is the one that unwinders (libgcc's linux-unwind.h, gdb) know, and it
 * has no unwind entry on purpose: they look at the bytes only where there is none. */
__asm__(".pushsection .text,\"ax\",@progbits\n"
	"	nop\n" /* unwinders look up the return address less one */
	".globl __kernel_rt_sigreturn\n.type __kernel_rt_sigreturn,@function\n"
	"__kernel_rt_sigreturn:\n"
	"	.byte 0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0\n" /* mov $15,%rax in the long form */
	"	syscall\n"
	"	hlt\n"
	".size __kernel_rt_sigreturn, . - __kernel_rt_sigreturn\n"
	".popsection\n");

/* ---- set-up at exec
 *
 * The tracer pokes the loader (position independent, between loader_with_call and loader_end) into unused
 * bytes of the host's [vdso] and resumes there. The loader can not move the mapping that it runs in, so it
 * maps this image below the host's mappings, in one piece with the range that they will move to, and goes on
 * in that copy. That copy moves the host's mappings, puts this image and the page in their place, goes on in
 * the image at its final address, and unmaps the first copy.
 *
 * Registers at the start, set by platform/vdso_image.py:
 *     r8   number of a call that returns the descriptor (loader_with_call), or the descriptor
 *          (loader_with_descriptor); not in rax, which the end of execve sets
 *     rdi, rsi, rdx, r10, r9, rbp   arguments and number of the mmap: MAP_PRIVATE | MAP_FIXED_NOREPLACE
 *     r12  offset of setup_entry in the image    r13  base of [vdso]    r14  MAP_PRIVATE
 *     r15  number of a last call, made before the int3   rbx  STATUS_LOADER
 * At the end: rbx a status; r12 the address of the host's [vdso], or the result of the call that failed. */

enum { STATUS_DONE = 0, STATUS_LOADER = 1, STATUS_UNTOUCHED = 2, STATUS_PARTIAL = 3 };

__asm__(".pushsection .trapline.stub,\"ax\",@progbits\n"
	"trampoline:\n" /* the tracer's calls, later on */
	"	syscall\n"
	"	int3\n"
	"	.balign 8, 0xcc\n"
	"loader_with_call:\n"
	"	mov %r8d, %eax\n"
	"	syscall\n"
	"	mov %eax, %r8d\n"
	"loader_with_descriptor:\n"
	"1:	mov %ebp, %eax\n"
	"	syscall\n"
	"	test %rax, %rax\n"
	"	js 2f\n"
	"	add %r12, %rax\n"
	"	jmp *%rax\n"
	"2:	test %rdi, %rdi\n"
	"	jz 3f\n"
	"	xor %edi, %edi\n" /* the range is taken: anywhere */
	"	mov %r14d, %r10d\n"
	"	jmp 1b\n"
	"3:	mov %rax, %r12\n"
	"	mov %r8d, %edi\n"
	"	mov $3, %eax\n" /* close */
	"	syscall\n"
	"	mov %r15d, %eax\n"
	"	syscall\n"
	"	int3\n"
	"	.balign 8, 0xcc\n"
	"loader_end:\n"
	"setup_entry:\n"
	"	mov %r13, %rdi\n"
	"	movslq %r8d, %rsi\n"
	"	mov %r15, %rdx\n"
	"	and $-64, %rsp\n"
	"	call setup\n"
	".popsection\n");

#define SETUP SECTION(".trapline.setup") __attribute__((noreturn, noinline, visibility("hidden")))

static inline __attribute__((always_inline, noreturn)) void report(i64 last_call, i64 status, i64 result)
{
	register i64 r12 __asm__("r12") = result;
	__asm__ volatile("syscall; int3" : : "a"(last_call), "b"(status), "r"(r12) : "rcx", "r11", "memory");
	__builtin_unreachable();
}

/* Runs at the final address. */
SETUP void setup_finish(i64 first_copy, i64 descriptor, i64 last_call, i64 host_base)
{
	call3(NR_close, descriptor, 0, 0);
	call3(NR_munmap, first_copy, IMAGE_SIZE, 0);
	report(last_call, STATUS_DONE, host_base);
}

/* Runs in the first copy. */
SETUP void setup(i64 base, i64 descriptor, i64 last_call)
{
	enum { READ = 1, WRITE = 2, EXEC = 4, SHARED = 1, PRIVATE = 2, FIXED = 16, MAYMOVE_FIXED = 3 };
	i64 first_copy = (i64)__ehdr_start;
	i64 lowest = base + trapline_info.mapping[0].offset;
	i64 shift = first_copy + IMAGE_SIZE - lowest; /* by which the host's mappings move */
	i64 total = 0, status = STATUS_UNTOUCHED, result;

	/* Special mappings move only whole; all by one distance, since the host's code finds its data relative
	 * to itself. */
	for (u64 i = 0; i < trapline_info.mappings; i++) {
		i64 old = base + trapline_info.mapping[i].offset, length = trapline_info.mapping[i].length;
		result = call(NR_mremap, old, length, length, MAYMOVE_FIXED, old + shift, 0);
		if (result != old + shift)
			goto fail; /* EPERM where the kernel seals its own mappings (CONFIG_MSEAL_SYSTEM_MAPPINGS) */
		status = STATUS_PARTIAL;
		total += length;
	}
	result = call(NR_mmap, base, IMAGE_SIZE, READ | EXEC, PRIVATE | FIXED, descriptor, PAGE);
	if (result != base)
		goto fail;
	result = call(NR_mmap, base - PAGE, PAGE, READ, SHARED | FIXED, descriptor, 0);
	if (result != base - PAGE)
		goto fail;
	if (shift != -total) {
		/* Not at the distance that the words of the shared image hold: make this process's own right.
		 * Where that is not allowed, the image as built follows in the memfd: real calls. */
		volatile i64 *host = (i64 *)(base + ((i64)trapline_info.host - first_copy));
		result = call3(NR_mprotect, base, IMAGE_SIZE, READ | WRITE);
		if (!result) {
			for (int i = 0; i < HOST_FUNCTIONS; i++)
				/* Those within the image are its own real calls. */
				if (host[i] <= -IMAGE_SIZE || host[i] >= IMAGE_SIZE)
					host[i] += shift + total;
			result = call3(NR_mprotect, base, IMAGE_SIZE, READ | EXEC);
		}
		if (result) {
			result = call(NR_mmap, base, IMAGE_SIZE, READ | EXEC, PRIVATE | FIXED, descriptor, PAGE + IMAGE_SIZE);
			if (result != base)
				goto fail;
		}
	}
	((void (*)(i64, i64, i64, i64))(base + ((i64)setup_finish - first_copy)))(first_copy, descriptor, last_call,
										base + shift);
	__builtin_unreachable();
fail:
	call3(NR_close, descriptor, 0, 0);
	report(last_call, status, result);
}
