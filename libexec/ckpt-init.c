/* ckpt-init: the first process of a job's PID namespace.
 *
 *   ckpt-init [--report FD] [--terminal] -- CMD [ARG]...
 *       Start CMD, reap every orphan, hand signals on to CMD, and exit as CMD ended: with its status, or
 *       with 128 + the signal that killed it. 127: CMD does not exist; 126: CMD cannot be executed.
 *       On FD (a socket; each message one packet) CMD's process first says 'S', from which the reader
 *       learns its pid as the reader sees it (SCM_CREDENTIALS); then comes the errno of a failed exec as
 *       four bytes, or the end of file that a successful exec causes.
 *       With --terminal CMD leads a session of its own, whose controlling terminal is its standard input: in what CRIU
 *       restores, the leader alone can move its session's groups to the front.
 *
 *   ckpt-init --hold FD
 *       Be the first process of a PID namespace into which CRIU restores processes. FD is a pipe: when the
 *       restore is committed, the main process's pid (in this namespace, decimal, a newline) comes out of
 *       it; from then on reap, hand signals on and exit as that process ends. If the pipe ends without a
 *       pid, exit 125: the kernel then kills the namespace, and nothing half restored stays.
 *
 * Rules:
 * - It is dumped and restored with the job, so it holds nothing that CRIU refuses: no signalfd, no pipe, no
 *   terminal, no directory but "/". Its working state is a signal mask and two numbers.
 * - A dump makes blocking calls return EINTR: every one of them is called again.
 * - No PR_SET_PDEATHSIG: it is restored as well, and would fire when CRIU ends.
 * - Static: its memory image depends on no library of the host, and the file's name carries its content's
 *   digest, since a dump refers to the executable by path, size and build-id.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	EXIT_USAGE = 2,
	EXIT_ABANDONED = 125,
	EXIT_NOT_EXECUTABLE = 126,
	EXIT_NOT_FOUND = 127,
	EXIT_BY_SIGNAL = 128,
};

/* What a terminal sends, it sends to the whole foreground process group: so do we. Everything else is meant
 * for one process. */
static const int group_signals[] = { SIGINT, SIGQUIT, SIGHUP, SIGTSTP, SIGTTIN, SIGTTOU, SIGCONT, SIGWINCH };

/* Raised by the CPU against the code that runs: blocking them would turn a crash into a loop. */
static const int fault_signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT };

static int fail(const char *what)
{
	fprintf(stderr, "ckpt-init: %s: %s\n", what, strerror(errno));
	return EXIT_ABANDONED;
}

static int usage(void)
{
	fputs("usage: ckpt-init [--report FD] [--terminal] -- CMD [ARG]... | ckpt-init --hold FD\n", stderr);
	return EXIT_USAGE;
}

static bool parse_number(const char *text, int *number)
{
	char *end;
	long value;

	errno = 0;
	value = strtol(text, &end, 10);
	if (errno || end == text || *end || value < 0 || value > 0x7fffffff)
		return false;
	*number = (int)value;
	return true;
}

static void block_signals(sigset_t *blocked, sigset_t *former)
{
	size_t i;

	sigfillset(blocked);
	for (i = 0; i < sizeof(fault_signals) / sizeof(*fault_signals); i++)
		sigdelset(blocked, fault_signals[i]);
	sigprocmask(SIG_SETMASK, blocked, former);
}

/* Nobody may wait for an end of file that we hold back, and no mount may be kept busy by us. */
static int let_go_of_the_outside(void)
{
	int null, fd;

	null = open("/dev/null", O_RDWR);
	if (null < 0)
		return fail("/dev/null");
	for (fd = 0; fd <= 2; fd++)
		if (null != fd && dup2(null, fd) < 0)
			return fail("dup2");
	if (null > 2)
		close(null);
	if (chdir("/"))
		return fail("/");
	return 0;
}

static void write_fully(int fd, const void *bytes, size_t count)
{
	ssize_t written;

	do {
		written = write(fd, bytes, count);
	} while (written < 0 && errno == EINTR);
}

static void run_command(char **argv, int report, bool terminal, const sigset_t *mask)
{
	int error;

	/* A group of its own, so that signals to the group do not come back to the init. */
	if (!terminal)
		setpgid(0, 0);
	else if (setsid() < 0 || ioctl(STDIN_FILENO, TIOCSCTTY, 0))
		_exit(fail("--terminal"));
	sigprocmask(SIG_SETMASK, mask, NULL);
	if (report >= 0)
		write_fully(report, "S", 1);
	execvp(argv[0], argv);
	error = errno;
	if (report >= 0)
		write_fully(report, &error, sizeof(error));
	fprintf(stderr, "ckpt-init: cannot execute %s: %s\n", argv[0], strerror(error));
	_exit(error == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

static void hand_on(int signal_number, pid_t main_process)
{
	size_t i;
	pid_t group;

	for (i = 0; i < sizeof(group_signals) / sizeof(*group_signals); i++) {
		if (group_signals[i] != signal_number)
			continue;
		group = getpgid(main_process);
		if (group > 1 && group != getpgrp()) {
			kill(-group, signal_number);
			return;
		}
	}
	kill(main_process, signal_number);
}

/* Returns the status with which to exit once the main process has ended. */
static int attend(pid_t main_process, const sigset_t *signals)
{
	int status, signal_number;
	pid_t ended;

	for (;;) {
		/* First reap, then wait: a child may have ended before, and a dump may have swallowed a wait. */
		while ((ended = waitpid(-1, &status, WNOHANG)) > 0 || (ended < 0 && errno == EINTR)) {
			if (ended != main_process)
				continue;
			if (WIFSIGNALED(status))
				return EXIT_BY_SIGNAL + WTERMSIG(status);
			return WEXITSTATUS(status);
		}
		/* The main process may have been reaped by its own parent (a restore that nests it deeper). */
		if (kill(main_process, 0) && errno == ESRCH)
			return EXIT_ABANDONED;
		signal_number = sigwaitinfo(signals, NULL);
		if (signal_number > 0 && signal_number != SIGCHLD)
			hand_on(signal_number, main_process);
	}
}

static int start(char **argv, int report, bool terminal)
{
	sigset_t blocked, former;
	pid_t child;
	int failed;

	block_signals(&blocked, &former);
	if (report >= 0 && fcntl(report, F_SETFD, FD_CLOEXEC))
		return fail("--report");
	child = fork();
	if (child < 0)
		return fail("fork");
	if (child == 0)
		run_command(argv, report, terminal, &former);
	if (report >= 0)
		close(report);
	failed = let_go_of_the_outside();
	if (failed)
		return failed;
	return attend(child, &blocked);
}

static int hold(int pipe_end)
{
	char text[16];
	size_t length = 0;
	ssize_t got;
	int main_process, failed;
	sigset_t blocked;

	block_signals(&blocked, NULL);
	/* Nothing is reaped here: a main process that ended already is kept, as a zombie, with its status. */
	for (;;) {
		got = read(pipe_end, text + length, sizeof(text) - 1 - length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return EXIT_ABANDONED;
		length += (size_t)got;
		if (text[length - 1] == '\n')
			break;
	}
	text[length - 1] = '\0';
	if (!parse_number(text, &main_process) || main_process < 2)
		return EXIT_ABANDONED;
	close(pipe_end);
	failed = let_go_of_the_outside();
	if (failed)
		return failed;
	return attend(main_process, &blocked);
}

int main(int argc, char **argv)
{
	int fd = -1;
	bool terminal;

	/* The root of a dumped tree in a PID namespace must lead its session (CRIU: "A session leader of N(1) is
	 * outside of its pid namespace"). It fails harmlessly where it is one already. */
	setsid();
	if (argc == 3 && !strcmp(argv[1], "--hold"))
		return parse_number(argv[2], &fd) ? hold(fd) : usage();
	argv++;
	if (*argv && !strcmp(*argv, "--report")) {
		if (!argv[1] || !parse_number(argv[1], &fd))
			return usage();
		argv += 2;
	}
	terminal = *argv && !strcmp(*argv, "--terminal");
	if (terminal)
		argv++;
	if (!*argv || strcmp(*argv, "--") || !argv[1])
		return usage();
	return start(argv + 1, fd, terminal);
}
