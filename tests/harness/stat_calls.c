/* Says what libc's stat calls show of a file, by each of them, and what they do to the processor's registers.
 *
 * Usage: stat_calls FOLDER
 *
 * It takes the requests FOLDER/1, FOLDER/2 … as they come (written elsewhere, and renamed to there), each a word
 * and a path, and answers in FOLDER/1.answer …. SIGTERM ends it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <sys/syscall.h>
#include <sys/mman.h>
#include <stddef.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

typedef int (*old_path_call)(int, const char *, struct stat *);
typedef int (*old_fd_call)(int, int, struct stat *);
typedef int (*old_at_call)(int, int, const char *, struct stat *, int);

static old_path_call old_stat, old_lstat;
static old_fd_call old_fstat;
static old_at_call old_fstatat;

/* ---- each call of the family */

static void show(FILE *out, const char *name, int result, const struct stat *s)
{
	if (result)
		fprintf(out, "%s %d %d 0 0\n", name, result, errno);
	else
		fprintf(out, "%s 0 0 %lu %lu %o %lu %u %u %ld %ld.%09ld %ld.%09ld\n", name, s->st_dev, s->st_ino,
			s->st_mode, s->st_nlink, s->st_uid, s->st_gid, s->st_size, s->st_mtim.tv_sec,
			s->st_mtim.tv_nsec, s->st_ctim.tv_sec, s->st_ctim.tv_nsec);
	errno = 0;
}

static void showx(FILE *out, const char *name, int result, const struct statx *s)
{
	if (result)
		fprintf(out, "%s %d %d 0 0\n", name, result, errno);
	else
		fprintf(out, "%s 0 0 %lu %llu %x %o %u %u %u %llu %lld.%09u %lld.%09u %llx\n", name,
			(unsigned long)makedev(s->stx_dev_major, s->stx_dev_minor), (unsigned long long)s->stx_ino,
			s->stx_mask, s->stx_mode, s->stx_nlink, s->stx_uid, s->stx_gid, (unsigned long long)s->stx_size,
			(long long)s->stx_mtime.tv_sec, s->stx_mtime.tv_nsec, (long long)s->stx_btime.tv_sec,
			s->stx_btime.tv_nsec, (unsigned long long)s->stx_attributes);
	errno = 0;
}

static void all(FILE *out, const char *path)
{
	struct stat s;
	struct statx x;
	int fd = open(path, O_PATH);

	errno = 0;
	show(out, "stat", stat(path, &s), &s);
	show(out, "lstat", lstat(path, &s), &s);
	show(out, "fstat", fstat(fd, &s), &s);
	show(out, "fstatat", fstatat(AT_FDCWD, path, &s, 0), &s);
	show(out, "fstatat-empty", fstatat(fd, "", &s, AT_EMPTY_PATH), &s);
	show(out, "fstatat-fault", fstatat(AT_FDCWD, path, (void *)8, 0), &s);
	show(out, "old-stat", old_stat(1, path, &s), &s);
	show(out, "old-lstat", old_lstat(1, path, &s), &s);
	show(out, "old-fstat", old_fstat(1, fd, &s), &s);
	show(out, "old-fstatat", old_fstatat(1, AT_FDCWD, path, &s, 0), &s);
	showx(out, "statx", statx(AT_FDCWD, path, 0, STATX_BASIC_STATS | STATX_BTIME, &x), &x);
	showx(out, "statx-empty", statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &x), &x);
	showx(out, "statx-fault", statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, (void *)8), &x);
	close(fd);
}

static void in_a_child(FILE *out, const char *path)
{
	fflush(out);
	if (fork() == 0) {
		all(out, path);
		fflush(out);
		_exit(0);
	}
	wait(NULL);
}

/* ---- the registers: guarded(call, path, buffer) calls old_stat(1, path, buffer), or as `fd` old_fstat */

long guarded(void *call, const void *path_or_fd, void *buffer);

__asm__(".text\n"
	"guarded:\n"
	"	push	%rbx\n	push	%rbp\n	push	%r12\n	push	%r13\n	push	%r14\n	push	%r15\n"
	"	sub	$264, %rsp\n"
	"	mov	%rdi, 256(%rsp)\n"
	"	mov	$1, %edi\n"
	"	mov	$0xb1b1, %rbx\n	mov	$0xb2b2, %rbp\n	mov	$0x8888, %r8\n	mov	$0x9999, %r9\n"
	"	mov	$0x1010, %r10\n	mov	$0x1212, %r12\n	mov	$0x1313, %r13\n	mov	$0x1414, %r14\n"
	"	mov	$0x1515, %r15\n"
	"	movq	%r15, %xmm0\n	movq	%r15, %xmm15\n"
	/* The red zone of the function that is called: 128 bytes below its return address. */
	"	mov	$-136, %rax\n"
	"1:	movq	$0x5a5a5a, (%rsp,%rax)\n	add	$8, %rax\n	cmp	$-8, %rax\n	jne	1b\n"
	"	call	*256(%rsp)\n"
	"	test	%eax, %eax\n	mov	$1, %eax\n	jne	9f\n"
	"	mov	$2, %eax\n	cmp	$0xb1b1, %rbx\n	jne	9f\n"
	"	mov	$3, %eax\n	cmp	$0xb2b2, %rbp\n	jne	9f\n"
	"	mov	$4, %eax\n	cmp	$0x8888, %r8\n	jne	9f\n"
	"	mov	$5, %eax\n	cmp	$0x9999, %r9\n	jne	9f\n"
	"	mov	$6, %eax\n	cmp	$0x1010, %r10\n	jne	9f\n"
	"	mov	$7, %eax\n	cmp	$0x1212, %r12\n	jne	9f\n"
	"	mov	$8, %eax\n	cmp	$0x1313, %r13\n	jne	9f\n"
	"	mov	$9, %eax\n	cmp	$0x1414, %r14\n	jne	9f\n"
	"	mov	$10, %eax\n	cmp	$0x1515, %r15\n	jne	9f\n"
	"	mov	$11, %eax\n	movq	%xmm0, %rcx\n	cmp	$0x1515, %rcx\n	jne	9f\n"
	"	mov	$12, %eax\n	movq	%xmm15, %rcx\n	cmp	$0x1515, %rcx\n	jne	9f\n"
	/* The wrapper moves the buffer's address from rdx to rsi, and leaves both. */
	"	mov	$13, %eax\n	cmp	%rdx, %rsi\n	jne	9f\n"
	"	mov	$-136, %rcx\n"
	"1:	mov	$14, %eax\n	cmpq	$0x5a5a5a, (%rsp,%rcx)\n	jne	9f\n"
	"	add	$8, %rcx\n	cmp	$-8, %rcx\n	jne	1b\n"
	"	xor	%eax, %eax\n"
	"9:	add	$264, %rsp\n"
	"	pop	%r15\n	pop	%r14\n	pop	%r13\n	pop	%r12\n	pop	%rbp\n	pop	%rbx\n"
	"	ret\n");

static void registers(FILE *out, const char *path)
{
	struct stat s;
	intptr_t fd = open(path, O_PATH);
	const struct {
		const char *name;
		void *call;
		const void *argument;
	} calls[] = { { "stat", old_stat, path }, { "lstat", old_lstat, path }, { "fstat", old_fstat, (void *)fd } };

	for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
		long wrong = guarded(calls[i].call, calls[i].argument, &s);

		fprintf(out, "%s %ld %lu\n", calls[i].name, wrong, s.st_ino);
	}
	close(fd);
}

/* ---- threads that do nothing else, interrupted by a timer whose handler does the same */

#define THREADS 3
#define KINDS 16

struct seen {
	_Atomic uint64_t calls, inodes[KINDS];
};

static char busy_path[4096];
static _Atomic int window;
static struct seen seen[2][THREADS + 1];

static void note(int in, int who, uint64_t inode)
{
	struct seen *mine = &seen[in & 1][who];

	if (in != window)
		return;
	for (int i = 0; i < KINDS; i++) {
		if (!mine->inodes[i])
			mine->inodes[i] = inode;
		if (mine->inodes[i] == inode)
			break;
	}
	mine->calls++;
}

static void *busy(void *argument)
{
	int who = (intptr_t)argument;
	int fd = open(busy_path, O_PATH);

	for (;;) {
		int in = window;
		struct stat s = { 0 };
		struct statx x = { 0 };

		if (who == 0 && stat(busy_path, &s) == 0)
			note(in, who, s.st_ino);
		else if (who == 1 && fstat(fd, &s) == 0)
			note(in, who, s.st_ino);
		else if (who == 2 && statx(fd, "", AT_EMPTY_PATH, STATX_INO, &x) == 0)
			note(in, who, x.stx_ino);
		else
			note(in, who, 1);
	}
	return NULL;
}

static void on_timer(int number)
{
	int saved = errno, in = window;
	struct stat s;

	(void)number;
	note(in, THREADS, stat(busy_path, &s) == 0 ? s.st_ino : 1);
	errno = saved;
}

static void start_threads(FILE *out, const char *path)
{
	struct itimerval often = { { 0, 700 }, { 0, 700 } };
	pthread_t thread;

	snprintf(busy_path, sizeof busy_path, "%s", path);
	for (intptr_t i = 0; i < THREADS; i++)
		pthread_create(&thread, NULL, busy, (void *)i);
	signal(SIGALRM, on_timer);
	setitimer(ITIMER_REAL, &often, NULL);
	fprintf(out, "started\n");
}

/* Every inode number that a thread or the handler sees from now on, until each has looked a few times. */
static void look(FILE *out, const char *path)
{
	(void)path;
	memset(seen[(window + 1) & 1], 0, sizeof seen[0]);
	int in = ++window;
	for (int who = 0; who <= THREADS; who++) {
		struct seen *one = &seen[in & 1][who];

		while (one->calls < 5)
			usleep(500);
		for (int i = 0; i < KINDS && one->inodes[i]; i++)
			fprintf(out, "%d %lu\n", who, one->inodes[i]);
	}
}

/* Whoever maps memory that can be run dies. */
static void forbid_new_code(FILE *out, const char *path)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(*filter), filter };

	(void)path;
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	fprintf(out, "%d\n", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
}

/* ---- requests */

static const struct {
	const char *word;
	void (*act)(FILE *out, const char *path);
} acts[] = {
	{ "all", all },
	{ "child", in_a_child },
	{ "registers", registers },
	{ "threads", start_threads },
	{ "look", look },
	{ "filter", forbid_new_code },
};

int main(int argc, char **argv)
{
	char name[4096], path[4096], word[32];

	old_stat = (old_path_call)dlvsym(RTLD_DEFAULT, "__xstat", "GLIBC_2.2.5");
	old_lstat = (old_path_call)dlvsym(RTLD_DEFAULT, "__lxstat", "GLIBC_2.2.5");
	old_fstat = (old_fd_call)dlvsym(RTLD_DEFAULT, "__fxstat", "GLIBC_2.2.5");
	old_fstatat = (old_at_call)dlvsym(RTLD_DEFAULT, "__fxstatat", "GLIBC_2.4");
	if (argc != 2 || chdir(argv[1]) || !old_stat || !old_lstat || !old_fstat || !old_fstatat)
		return 1;
	for (int number = 1;; number++) {
		FILE *request, *answer;

		snprintf(name, sizeof name, "%d", number);
		while (!(request = fopen(name, "r")))
			usleep(2000);
		if (fscanf(request, "%31s %4095s", word, path) != 2)
			return 1;
		fclose(request);
		answer = fopen("writing", "w");
		for (size_t i = 0; i < sizeof acts / sizeof *acts; i++)
			if (!strcmp(acts[i].word, word))
				acts[i].act(answer, path);
		fclose(answer);
		snprintf(name, sizeof name, "%d.answer", number);
		rename("writing", name);
	}
}
