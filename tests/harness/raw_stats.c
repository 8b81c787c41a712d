/* Makes the stat calls that it is told to, past libc, and says all that the kernel gave: error and structure.
 *
 * One request a line, one answer a line. It reads and writes without stdio's buffers, so that a fork and an exec
 * may come between any two requests. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/stat.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char line[8192];
static unsigned char out[512];

static int read_line(void)
{
	size_t n = 0;
	while (n < sizeof line - 1) {
		ssize_t got = read(0, line + n, 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return 0;
		if (line[n] == '\n') {
			line[n] = 0;
			return 1;
		}
		n++;
	}
	return 0;
}

static void say(const char *text)
{
	char answer[2048];
	int n = snprintf(answer, sizeof answer, "%s\n", text);
	if (write(1, answer, n) != n)
		exit(3);
}

static void say_number(long number)
{
	char text[32];
	snprintf(text, sizeof text, "%ld", number);
	say(text);
}

static void say_result(long result, size_t size)
{
	char text[1200];
	int n = snprintf(text, sizeof text, "%d ", result ? errno : 0);
	for (size_t i = 0; i < size && !result; i++)
		n += snprintf(text + n, sizeof text - n, "%02x", out[i]);
	say(text);
}

/* CALL DIRFD FLAGS MASK PATH; where PATH is "NULL" there is none, and out of reach is a pointer "BAD". */
static long ask(const char *call, int dirfd, int flags, unsigned mask, const char *path, void *to, size_t *size)
{
	*size = 144;
	if (!strcmp(path, "NULL"))
		path = NULL;
	else if (!strcmp(path, "BAD"))
		path = (const char *)8;
#ifdef SYS_stat
	if (!strcmp(call, "stat"))
		return syscall(SYS_stat, path, to);
	if (!strcmp(call, "lstat"))
		return syscall(SYS_lstat, path, to);
#endif
	if (!strcmp(call, "fstat"))
		return syscall(SYS_fstat, dirfd, to);
	if (!strcmp(call, "fstatat"))
		return syscall(SYS_newfstatat, dirfd, path, to, flags);
	*size = sizeof(struct statx);
	return syscall(SYS_statx, dirfd, path, flags, mask, to);
}

static long now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

struct loop {
	const char *path;
	unsigned long inode;
	long until;
	long calls, wrong, gap;
};

static volatile int enough;

static void *loop(void *argument)
{
	struct loop *l = argument;
	int fd = open(l->path, O_RDONLY);
	long last = now_ns();
	while (!enough && last < l->until) {
		unsigned long found[64] = {0};
		long result = l->calls & 1 ? syscall(SYS_fstat, fd, found)
					   : syscall(SYS_newfstatat, AT_FDCWD, l->path, found, 0);
		long t = now_ns();
		if (t - last > l->gap)
			l->gap = t - last;
		last = t;
		l->calls++;
		l->wrong += result != 0 || found[1] != l->inode;
	}
	close(fd);
	return NULL;
}

/* Look until the next line comes, in so many threads: calls, wrong ones, the longest gap in microseconds. */
static void look_on(int threads, unsigned long inode, const char *path)
{
	struct loop loops[16];
	pthread_t ids[16];
	long calls = 0, wrong = 0, gap = 0;
	char *copy = strdup(path), text[96];
	enough = 0;
	for (int i = 0; i < threads; i++) {
		loops[i] = (struct loop){copy, inode, now_ns() + 60000000000L, 0, 0, 0};
		pthread_create(&ids[i], NULL, loop, &loops[i]);
	}
	say("looking");
	read_line();
	enough = 1;
	for (int i = 0; i < threads; i++) {
		pthread_join(ids[i], NULL);
		calls += loops[i].calls;
		wrong += loops[i].wrong;
		gap = loops[i].gap > gap ? loops[i].gap : gap;
	}
	free(copy);
	snprintf(text, sizeof text, "%ld %ld %ld", calls, wrong, gap / 1000);
	say(text);
}

static void *rest(void *nothing)
{
	pause();
	return nothing;
}

static void nothing(int number)
{
	(void)number;
}

/* A filter of the program's own: this call fails with EPERM from now on. */
static int forbid(long number)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog whole = {4, program};
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &whole);
}

int main(int argc, char **argv)
{
	(void)argc;
	setvbuf(stdout, NULL, _IONBF, 0);
	while (read_line()) {
		char call[16] = "", path[4200] = "";
		long a = 0, b = 0, c = 0;
		size_t size;
		int n = sscanf(line, "%15s %li %li %li %4199[^\n]", call, &a, &b, &c, path);
		if (n < 1)
			return 2;
		if (!strcmp(call, "open"))
			say_number(open(path, a));
		else if (!strcmp(call, "close"))
			say_number(close(a));
		else if (!strcmp(call, "pipe")) {
			int fds[2];
			say_number(pipe(fds) ? -1 : fds[0]);
		} else if (!strcmp(call, "chdir"))
			say_number(chdir(path));
		else if (!strcmp(call, "chroot"))
			say_number(chroot(path));
		else if (!strcmp(call, "unshare"))
			say_number(unshare(a) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
		else if (!strcmp(call, "bind")) {
			char *target = strchr(path, '|');
			*target++ = 0;
			say_number(mount(path, target, NULL, MS_BIND, NULL));
		} else if (!strcmp(call, "become"))
			say_number(setgroups(0, NULL) || setresgid(a, a, a) || setresuid(a, a, a));
		else if (!strcmp(call, "thread")) {
			pthread_t id;
			say_number(pthread_create(&id, NULL, rest, NULL));
		} else if (!strcmp(call, "fork")) {
			/* The child goes on with the conversation; this process ends with it. */
			pid_t pid = fork();
			if (pid) {
				int status;
				while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
					;
				return WEXITSTATUS(status);
			}
			say_number(getpid());
		} else if (!strcmp(call, "exec")) {
			execl(path, path, (char *)NULL);
			say_number(-1);
		} else if (!strcmp(call, "self"))
			execv("/proc/self/exe", argv);
		else if (!strcmp(call, "alarm")) {
			struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
			struct itimerval every = {{0, a}, {0, a}};
			sigaction(SIGALRM, &action, NULL);
			say_number(setitimer(ITIMER_REAL, &every, NULL));
		} else if (!strcmp(call, "forbid"))
			say_number(forbid(a));
		else if (!strcmp(call, "try"))
			say_number(syscall(a, 0, 0, 0) < 0 ? errno : 0);
		else if (!strcmp(call, "look"))
			look_on(a, b, path);
		else if (!strcmp(call, "badout")) {
			say_result(syscall(SYS_newfstatat, AT_FDCWD, path, (void *)8, 0), 0);
		} else if (!strcmp(call, "edge")) {
			/* The structure lies over the end of a page behind which nothing is mapped. */
			char *two = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			munmap(two + 4096, 4096);
			say_result(syscall(SYS_newfstatat, AT_FDCWD, path, two + 4096 - 64, 0), 0);
			/* The path ends at the end of the page. */
			char *last = two + 4096 - strlen(path) - 1;
			strcpy(last, path);
			say_result(syscall(SYS_newfstatat, AT_FDCWD, last, out, 0), 144);
			munmap(two, 4096);
		} else {
			memset(out, 0x5a, sizeof out);
			long result = ask(call, a, b, c, path, out, &size);
			say_result(result, size);
		}
	}
	return 0;
}
