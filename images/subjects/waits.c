/* Every way to wait for a time, and when each wait was over, by the clock that it is measured by.
 *
 * Usage: waits LOG SPAN_S PERIOD_MS
 *
 * At the start everything is set to be over SPAN_S seconds later. Then each wait writes one line when it is over:
 * `wait` is its name, `clock` and `due_ns` when it should be, `done_ns` when it was, `result` and `errno` what the
 * call gave. The periodic timerfds write a line at the end: how many `ticks` they counted of how many were `due`.
 * Waits without an end write a line only if they are cut short. A watch looks at the clocks every 2 ms: where the
 * wall clock leaps, `leap` has the clocks before and after. `tick` counts the lines. SIGTERM ends it. */

#define _GNU_SOURCE
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include "report.h"

#define LEAP_NS (200 * MS)

static long long span_ns, period_ns, start_ns[CLOCK_BOOTTIME + 1];
static pthread_mutex_t line = PTHREAD_MUTEX_INITIALIZER;

static const char *name_of(clockid_t clock)
{
	return clock == CLOCK_REALTIME ? "realtime" : clock == CLOCK_BOOTTIME ? "boottime" : "monotonic";
}

static void over(const char *wait, clockid_t clock, long long result)
{
	long long done_ns = now_ns(clock);
	int number = errno;

	pthread_mutex_lock(&line);
	report_tick++;
	report_line("{\"tick\": %lld, \"wait\": \"%s\", \"clock\": \"%s\", \"due_ns\": %lld, \"done_ns\": %lld, "
		    "\"result\": %lld, \"errno\": %d}\n",
		    report_tick, wait, name_of(clock), start_ns[clock] + span_ns, done_ns, result,
		    result < 0 ? number : 0);
	pthread_mutex_unlock(&line);
}

static void *sleep_to_the_rest(void *unused)
{
	struct timespec span = timespec_of(span_ns), rest;

	over("nanosleep_rest", CLOCK_MONOTONIC, nanosleep(&span, &rest));
	return unused;
}

static void *sleep_without_rest(void *unused)
{
	struct timespec span = timespec_of(span_ns);

	over("nanosleep", CLOCK_MONOTONIC, nanosleep(&span, NULL));
	return unused;
}

static void *sleep_by_boottime(void *unused)
{
	struct timespec span = timespec_of(span_ns), rest;

	over("clock_nanosleep_boottime", CLOCK_BOOTTIME,
	     syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &span, &rest));
	return unused;
}

static void *sleep_until(void *clock)
{
	clockid_t id = (intptr_t)clock;
	struct timespec due = timespec_of(start_ns[id] + span_ns);
	char name[64];

	snprintf(name, sizeof name, "until_%s", name_of(id));
	over(name, id, syscall(SYS_clock_nanosleep, id, TIMER_ABSTIME, &due, NULL));
	return clock;
}

static void *poll_for_nothing(void *unused)
{
	over("poll", CLOCK_MONOTONIC, poll(NULL, 0, span_ns / MS));
	return unused;
}

static void *ppoll_for_nothing(void *unused)
{
	struct timespec span = timespec_of(span_ns);

	over("ppoll", CLOCK_MONOTONIC, ppoll(NULL, 0, &span, NULL));
	return unused;
}

static void *select_nothing(void *unused)
{
	struct timeval span = { span_ns / SECOND, span_ns % SECOND / 1000 };

	over("select", CLOCK_MONOTONIC, select(0, NULL, NULL, NULL, &span));
	return unused;
}

static void *epoll_for_nothing(void *unused)
{
	struct epoll_event event;

	over("epoll_wait", CLOCK_MONOTONIC, epoll_wait(epoll_create1(EPOLL_CLOEXEC), &event, 1, span_ns / MS));
	return unused;
}

static void *futex_for_a_span(void *unused)
{
	struct timespec span = timespec_of(span_ns);
	static int word;

	over("futex_span", CLOCK_MONOTONIC, syscall(SYS_futex, &word, FUTEX_WAIT, 0, &span, NULL, 0));
	return unused;
}

static void *futex_until(void *unused)
{
	struct timespec due = timespec_of(start_ns[CLOCK_MONOTONIC] + span_ns);
	static int word;

	over("futex_until", CLOCK_MONOTONIC,
	     syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, 0, &due, NULL, FUTEX_BITSET_MATCH_ANY));
	return unused;
}

static void *poll_without_end(void *unused)
{
	struct pollfd watched = { .fd = inotify_init1(IN_CLOEXEC), .events = POLLIN };

	over("poll_endless", CLOCK_MONOTONIC, poll(&watched, 1, -1));
	return unused;
}

static void *epoll_without_end(void *unused)
{
	struct epoll_event event;

	over("epoll_endless", CLOCK_MONOTONIC, epoll_wait(epoll_create1(EPOLL_CLOEXEC), &event, 1, -1));
	return unused;
}

static void *signal_without_end(void *unused)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR2);
	over("signal_endless", CLOCK_MONOTONIC, sigwaitinfo(&signals, NULL));
	return unused;
}

struct timerfd {
	clockid_t clock;
	int absolute;
};

static struct timerfd timerfds[] = {
	{ CLOCK_MONOTONIC, 0 }, { CLOCK_MONOTONIC, 1 }, { CLOCK_BOOTTIME, 0 },
	{ CLOCK_BOOTTIME, 1 },	{ CLOCK_REALTIME, 0 },	{ CLOCK_REALTIME, 1 },
};

static void *timerfd_once(void *which)
{
	struct timerfd *timer = which;
	struct itimerspec spec = { .it_value = timespec_of(span_ns + (timer->absolute ? start_ns[timer->clock] : 0)) };
	int fd = timerfd_create(timer->clock, TFD_CLOEXEC);
	uint64_t count = 0;
	char name[64];
	ssize_t size;

	need(timerfd_settime(fd, timer->absolute ? TFD_TIMER_ABSTIME : 0, &spec, NULL) == 0, "timerfd_settime");
	size = read(fd, &count, sizeof count);
	snprintf(name, sizeof name, "timerfd_%s_%s", name_of(timer->clock), timer->absolute ? "until" : "span");
	/* A span on the wall clock is measured by another one. */
	over(name, !timer->absolute && timer->clock == CLOCK_REALTIME ? CLOCK_MONOTONIC : timer->clock,
	     size == sizeof count ? 0 : -1);
	return which;
}

static void *timerfd_again(void *clock)
{
	clockid_t id = (intptr_t)clock, measure = id == CLOCK_REALTIME ? CLOCK_MONOTONIC : id;
	struct itimerspec spec = { timespec_of(period_ns), timespec_of(period_ns) };
	int fd = timerfd_create(id, TFD_CLOEXEC);
	long long began = now_ns(measure), ticks = 0, now;
	uint64_t count;

	need(timerfd_settime(fd, 0, &spec, NULL) == 0, "timerfd_settime");
	do {
		need(read(fd, &count, sizeof count) == sizeof count, "read of a periodic timerfd");
		ticks += count;
		now = now_ns(measure);
	} while (now < start_ns[measure] + span_ns);
	pthread_mutex_lock(&line);
	report_tick++;
	report_line("{\"tick\": %lld, \"wait\": \"periodic_%s\", \"ticks\": %lld, \"due\": %.3f}\n", report_tick,
		    name_of(id), ticks, (double)(now - began) / period_ns);
	pthread_mutex_unlock(&line);
	return clock;
}

/* Those that give a signal: the number is what the signal brings along. */
static struct {
	const char *name;
	clockid_t clock, measure;
	int absolute;
} posix[] = {
	{ "posix_monotonic_span", CLOCK_MONOTONIC, CLOCK_MONOTONIC, 0 },
	{ "posix_monotonic_until", CLOCK_MONOTONIC, CLOCK_MONOTONIC, 1 },
	{ "posix_boottime_span", CLOCK_BOOTTIME, CLOCK_BOOTTIME, 0 },
	{ "posix_realtime_span", CLOCK_REALTIME, CLOCK_MONOTONIC, 0 },
	{ "posix_realtime_until", CLOCK_REALTIME, CLOCK_REALTIME, 1 },
};

static void set_signalling_timers(void)
{
	struct itimerval alarm_in = { .it_value = { span_ns / SECOND, span_ns % SECOND / 1000 } };
	size_t i;

	for (i = 0; i < sizeof posix / sizeof *posix; i++) {
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };
		struct itimerspec spec = {
			.it_value = timespec_of(span_ns + (posix[i].absolute ? start_ns[posix[i].clock] : 0))
		};
		timer_t timer;

		event.sigev_value.sival_int = i;
		need(timer_create(posix[i].clock, &event, &timer) == 0, "timer_create");
		need(timer_settime(timer, posix[i].absolute ? TIMER_ABSTIME : 0, &spec, NULL) == 0, "timer_settime");
	}
	need(setitimer(ITIMER_REAL, &alarm_in, NULL) == 0, "setitimer");
}

static void *watch(void *unused)
{
	long long before[3] = { 0 }, now[3];
	struct timespec rest = timespec_of(2 * MS);

	for (;;) {
		now[0] = now_ns(CLOCK_REALTIME);
		now[1] = now_ns(CLOCK_MONOTONIC);
		now[2] = now_ns(CLOCK_BOOTTIME);
		if (before[0] && now[0] - before[0] > LEAP_NS) {
			pthread_mutex_lock(&line);
			report_tick++;
			report_line("{\"tick\": %lld, \"leap\": {\"realtime_ns\": [%lld, %lld], \"monotonic_ns\": [%lld, %lld], "
				    "\"boottime_ns\": [%lld, %lld]}}\n",
				    report_tick, before[0], now[0], before[1], now[1], before[2], now[2]);
			pthread_mutex_unlock(&line);
		}
		memcpy(before, now, sizeof before);
		clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, NULL);
	}
	return unused;
}

static void start(void *(*what)(void *), void *argument)
{
	pthread_t thread;

	need(pthread_create(&thread, NULL, what, argument) == 0, "pthread_create");
}

int main(int argc, char **argv)
{
	void *(*waits[])(void *) = { sleep_to_the_rest, sleep_without_rest, sleep_by_boottime, poll_for_nothing,
				     ppoll_for_nothing, select_nothing,	    epoll_for_nothing, futex_for_a_span,
				     futex_until,	poll_without_end,   epoll_without_end, signal_without_end };
	clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME };
	struct signalfd_siginfo info;
	sigset_t signals;
	size_t i;
	int fd;

	if (argc != 4) {
		fputs("usage: waits LOG SPAN_S PERIOD_MS\n", stderr);
		return 2;
	}
	report_open(argv[1]);
	span_ns = (long long)(atof(argv[2]) * SECOND);
	period_ns = (long long)(atof(argv[3]) * MS);
	sigemptyset(&signals);
	sigaddset(&signals, SIGALRM);
	sigaddset(&signals, SIGRTMIN);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGUSR2);
	need(sigprocmask(SIG_BLOCK, &signals, NULL) == 0, "sigprocmask");
	sigdelset(&signals, SIGUSR2);
	fd = signalfd(-1, &signals, SFD_CLOEXEC);
	for (i = 0; i < sizeof clocks / sizeof *clocks; i++)
		start_ns[clocks[i]] = now_ns(clocks[i]);
	for (i = 0; i < sizeof waits / sizeof *waits; i++)
		start(waits[i], NULL);
	for (i = 0; i < sizeof timerfds / sizeof *timerfds; i++)
		start(timerfd_once, &timerfds[i]);
	for (i = 0; i < sizeof clocks / sizeof *clocks; i++) {
		start(sleep_until, (void *)(intptr_t)clocks[i]);
		start(timerfd_again, (void *)(intptr_t)clocks[i]);
	}
	set_signalling_timers();
	start(watch, NULL);
	pthread_mutex_lock(&line);
	report_tick++;
	report_line("{\"tick\": %lld, \"ready\": true}\n", report_tick);
	pthread_mutex_unlock(&line);
	for (;;) {
		need(read(fd, &info, sizeof info) == sizeof info, "read of signalfd");
		if (info.ssi_signo == SIGTERM)
			return 0;
		if (info.ssi_signo == SIGALRM)
			over("itimer", CLOCK_MONOTONIC, 0);
		else
			over(posix[info.ssi_int].name, posix[info.ssi_int].measure, 0);
	}
}
