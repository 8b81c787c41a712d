/* One of every file descriptor that waits for something, in one epoll loop, and the timers that send signals.
 *
 * Usage: events LOG FOLDER
 *
 * Every tick tells how often each source has fired. The program gives up when one of them stops, when an
 * eventfd or inotify event is lost, or when a signal that it sends itself does not come. A timer set to a
 * moment must not fire before it: `early_ns` is by how much one ever did, `late_ns` the worst delay since the
 * last tick. SIGTERM ends it with exit code 0. */

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include "report.h"

enum source {
	PERIODIC, /* timerfd, CLOCK_MONOTONIC, every 50 ms: this is the tick */
	MOMENT, /* timerfd, CLOCK_MONOTONIC, set to an absolute time again and again */
	WALL, /* the same on CLOCK_REALTIME */
	EVENTFD, /* one for every tick */
	INOTIFY, /* one for every fourth tick: a file that this program writes */
	POSIX_TIMER, /* timer_create, a real-time signal every 70 ms */
	ITIMER, /* setitimer, SIGALRM every 90 ms */
	OWN_SIGNAL, /* SIGUSR1 to itself, every fifth tick */
	SOURCES,
	SIGNALFD, /* the last three come through it */
};

#define TICK_NS (50 * MS)
#define MOMENT_NS (120 * MS)
#define WALL_NS (150 * MS)
#define TOUCH_EVERY 4
#define SIGNAL_EVERY 5
#define CHECK_EVERY 40

static const char *const names[SOURCES] = { "periodic", "moment",      "wall",	 "eventfd",
					    "inotify",	"posix_timer", "itimer", "own_signal" };
static long long fired[SOURCES], checked[SOURCES];
static long long due[SOURCES], early_ns[SOURCES], late_ns[SOURCES];
static long long touched, signalled;
static int fds[SIGNALFD + 1];
static char touch_path[4096];

static void set_to_moment(enum source source, clockid_t clock, long long after_ns)
{
	struct itimerspec spec = { 0 };

	due[source] = now_ns(clock) + after_ns;
	spec.it_value = timespec_of(due[source]);
	need(timerfd_settime(fds[source], TFD_TIMER_ABSTIME, &spec, NULL) == 0, "timerfd_settime");
}

static void touch(void)
{
	int fd = open(touch_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	need(fd >= 0 && pwrite(fd, &report_tick, sizeof report_tick, 0) == sizeof report_tick, "the touched file");
	close(fd);
	touched++;
}

static void check(void)
{
	char what[128];
	int source;

	for (source = 0; source < SOURCES; source++) {
		errno = 0;
		snprintf(what, sizeof what, "%s stopped at %lld", names[source], fired[source]);
		need(fired[source] > checked[source], what);
		checked[source] = fired[source];
	}
	/* What was written in this very tick may still be on its way. */
	need(fired[EVENTFD] >= report_tick - 1, "an eventfd count is lost");
	need(fired[INOTIFY] >= touched - 1, "an inotify event is lost");
	need(fired[OWN_SIGNAL] >= signalled - 1, "a signal is lost");
}

static void tick(void)
{
	uint64_t one = 1;

	report_tick++;
	need(write(fds[EVENTFD], &one, sizeof one) == sizeof one, "write to the eventfd");
	if (report_tick % TOUCH_EVERY == 0)
		touch();
	if (report_tick % SIGNAL_EVERY == 0) {
		need(kill(getpid(), SIGUSR1) == 0, "kill");
		signalled++;
	}
	report_line("{\"tick\": %lld, \"pid\": %d, \"monotonic_ns\": %lld, \"boottime_ns\": %lld, \"realtime_ns\": %lld, "
		    "\"fired\": {\"periodic\": %lld, \"moment\": %lld, \"wall\": %lld, \"eventfd\": %lld, \"inotify\": %lld, "
		    "\"posix_timer\": %lld, \"itimer\": %lld, \"own_signal\": %lld}, "
		    "\"early_ns\": {\"moment\": %lld, \"wall\": %lld}, \"late_ns\": {\"moment\": %lld, \"wall\": %lld}}\n",
		    report_tick, getpid(), now_ns(CLOCK_MONOTONIC), now_ns(CLOCK_BOOTTIME), now_ns(CLOCK_REALTIME),
		    fired[PERIODIC], fired[MOMENT], fired[WALL], fired[EVENTFD], fired[INOTIFY], fired[POSIX_TIMER],
		    fired[ITIMER], fired[OWN_SIGNAL], early_ns[MOMENT], early_ns[WALL], late_ns[MOMENT],
		    late_ns[WALL]);
	late_ns[MOMENT] = late_ns[WALL] = 0;
	if (report_tick % CHECK_EVERY == 0)
		check();
}

static uint64_t read_count(enum source source)
{
	uint64_t count = 0;

	need(read(fds[source], &count, sizeof count) == sizeof count, names[source]);
	return count;
}

static void on_moment(enum source source, clockid_t clock, long long again_ns)
{
	long long late = now_ns(clock) - due[source];

	fired[source] += read_count(source);
	if (late > late_ns[source])
		late_ns[source] = late;
	if (-late > early_ns[source])
		early_ns[source] = -late;
	set_to_moment(source, clock, again_ns);
}

static void on_inotify(void)
{
	char events[4096] __attribute__((aligned(8)));
	ssize_t size = read(fds[INOTIFY], events, sizeof events), at = 0;

	need(size > 0, "read of inotify");
	while (at < size) {
		struct inotify_event *event = (struct inotify_event *)(events + at);

		need(event->mask & IN_CLOSE_WRITE, "inotify tells of something else");
		fired[INOTIFY]++;
		at += sizeof *event + event->len;
	}
}

static void on_signal(void)
{
	struct signalfd_siginfo info;

	need(read(fds[SIGNALFD], &info, sizeof info) == sizeof info, "read of signalfd");
	if (info.ssi_signo == SIGTERM)
		exit(0);
	else if (info.ssi_signo == SIGALRM)
		fired[ITIMER]++;
	else if (info.ssi_signo == SIGUSR1)
		fired[OWN_SIGNAL]++;
	else if ((int)info.ssi_signo == SIGRTMIN)
		fired[POSIX_TIMER] += 1 + info.ssi_overrun;
}

static void watch(int epoll, enum source source, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = source };

	fds[source] = fd;
	need(fd >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

static int set_up(const char *folder)
{
	struct itimerspec every_tick = { timespec_of(TICK_NS), timespec_of(TICK_NS) };
	struct itimerspec every_70_ms = { timespec_of(70 * MS), timespec_of(70 * MS) };
	struct itimerval every_90_ms = { { 0, 90000 }, { 0, 90000 } };
	struct sigevent signal_event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	sigset_t signals;
	timer_t timer;

	need(epoll >= 0, "epoll_create1");
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGALRM);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGRTMIN);
	need(sigprocmask(SIG_BLOCK, &signals, NULL) == 0, "sigprocmask");

	watch(epoll, PERIODIC, timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
	watch(epoll, MOMENT, timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
	watch(epoll, WALL, timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC));
	watch(epoll, EVENTFD, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
	watch(epoll, INOTIFY, inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
	watch(epoll, SIGNALFD, signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC));

	snprintf(touch_path, sizeof touch_path, "%s/touched", folder);
	need(inotify_add_watch(fds[INOTIFY], folder, IN_CLOSE_WRITE) >= 0, "inotify_add_watch");
	need(timerfd_settime(fds[PERIODIC], 0, &every_tick, NULL) == 0, "timerfd_settime");
	set_to_moment(MOMENT, CLOCK_MONOTONIC, MOMENT_NS);
	set_to_moment(WALL, CLOCK_REALTIME, WALL_NS);
	need(timer_create(CLOCK_MONOTONIC, &signal_event, &timer) == 0, "timer_create");
	need(timer_settime(timer, 0, &every_70_ms, NULL) == 0, "timer_settime");
	need(setitimer(ITIMER_REAL, &every_90_ms, NULL) == 0, "setitimer");
	return epoll;
}

int main(int argc, char **argv)
{
	struct epoll_event event;
	uint64_t expirations;
	int epoll, count;

	if (argc != 3) {
		fputs("usage: events LOG FOLDER\n", stderr);
		return 2;
	}
	report_open(argv[1]);
	epoll = set_up(argv[2]);
	for (;;) {
		count = epoll_wait(epoll, &event, 1, -1);
		/* A dump interrupts it. */
		if (count < 0 && errno == EINTR)
			continue;
		need(count == 1, "epoll_wait");
		switch ((enum source)event.data.u32) {
		case PERIODIC:
			expirations = read_count(PERIODIC);
			fired[PERIODIC] += expirations;
			tick();
			break;
		case MOMENT:
			on_moment(MOMENT, CLOCK_MONOTONIC, MOMENT_NS);
			break;
		case WALL:
			on_moment(WALL, CLOCK_REALTIME, WALL_NS);
			break;
		case EVENTFD:
			fired[EVENTFD] += read_count(EVENTFD);
			break;
		case INOTIFY:
			on_inotify();
			break;
		case SIGNALFD:
			on_signal();
			break;
		default:
			fail("an event of nobody");
		}
	}
}
