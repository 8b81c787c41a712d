/* The clocks and every kind of one-shot timer, as a program sees them.
 *
 * Usage: clocks LOG TIMERS_S SLEEP_S
 *
 * At the start all timers are set to fire in TIMERS_S seconds, and two threads fall asleep for SLEEP_S seconds.
 * Every 20 ms a tick tells the three clocks; `left_ns`, what remains of each timer, read right after the clocks;
 * `fired_ns`, when each fired on the clock that it runs on, or 0; and `woke_ns`, when each sleeper woke on
 * CLOCK_MONOTONIC, or 0. `start_ns` are the clocks at the moment when the timers were set. `interrupted` counts
 * how often the relative sleep was cut short and slept on. SIGTERM ends it. */

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include "report.h"

#define TICK_NS (20 * MS)

static struct {
	const char *name;
	clockid_t clock;
	int fd;
	timer_t timer;
} timers[] = {
	{ .name = "timerfd_monotonic", .clock = CLOCK_MONOTONIC },
	{ .name = "timerfd_boottime", .clock = CLOCK_BOOTTIME },
	{ .name = "timerfd_moment", .clock = CLOCK_MONOTONIC },
	{ .name = "posix_monotonic", .clock = CLOCK_MONOTONIC },
	{ .name = "posix_boottime", .clock = CLOCK_BOOTTIME },
	{ .name = "itimer", .clock = CLOCK_MONOTONIC },
};
enum { TIMERFD_MONOTONIC, TIMERFD_BOOTTIME, TIMERFD_MOMENT, POSIX_MONOTONIC, POSIX_BOOTTIME, ITIMER, TIMERS };

static _Atomic long long fired_ns[TIMERS];
static _Atomic long long woke_relative_ns, woke_absolute_ns, interrupted;
static long long start_monotonic_ns, start_boottime_ns, start_realtime_ns, sleep_ns;

static void on_signal(int number, siginfo_t *info, void *context)
{
	int timer = number == SIGALRM ? ITIMER : info->si_value.sival_int;

	(void)context;
	if (number == SIGTERM)
		_exit(0);
	fired_ns[timer] = now_ns(timers[timer].clock);
}

static void *sleep_relative(void *unused)
{
	struct timespec rest = timespec_of(sleep_ns);

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &rest, &rest) == EINTR)
		interrupted++;
	woke_relative_ns = now_ns(CLOCK_MONOTONIC);
	return unused;
}

static void *sleep_absolute(void *unused)
{
	struct timespec due = timespec_of(start_monotonic_ns + sleep_ns);

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
		;
	woke_absolute_ns = now_ns(CLOCK_MONOTONIC);
	return unused;
}

static void start_sleeper(void *(*sleeper)(void *))
{
	pthread_t thread;

	need(pthread_create(&thread, NULL, sleeper, NULL) == 0, "pthread_create");
}

static void set_timers(long long after_ns)
{
	struct itimerspec relative = { .it_value = timespec_of(after_ns) };
	struct itimerspec moment = { .it_value = timespec_of(start_monotonic_ns + after_ns) };
	struct itimerval alarm_in = { .it_value = { after_ns / SECOND, after_ns % SECOND / 1000 } };
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
	int i;

	sigaction(SIGALRM, &action, NULL);
	sigaction(SIGRTMIN, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	for (i = TIMERFD_MONOTONIC; i <= TIMERFD_MOMENT; i++) {
		timers[i].fd = timerfd_create(timers[i].clock, TFD_NONBLOCK | TFD_CLOEXEC);
		need(timers[i].fd >= 0, "timerfd_create");
		need(timerfd_settime(timers[i].fd, i == TIMERFD_MOMENT ? TFD_TIMER_ABSTIME : 0,
				     i == TIMERFD_MOMENT ? &moment : &relative, NULL) == 0,
		     "timerfd_settime");
	}
	for (i = POSIX_MONOTONIC; i <= POSIX_BOOTTIME; i++) {
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN };

		event.sigev_value.sival_int = i;
		need(timer_create(timers[i].clock, &event, &timers[i].timer) == 0, "timer_create");
		need(timer_settime(timers[i].timer, 0, &relative, NULL) == 0, "timer_settime");
	}
	need(setitimer(ITIMER_REAL, &alarm_in, NULL) == 0, "setitimer");
}

static long long left_ns(int i)
{
	struct itimerspec spec = { 0 };
	struct itimerval value;

	if (i == ITIMER) {
		need(getitimer(ITIMER_REAL, &value) == 0, "getitimer");
		return value.it_value.tv_sec * SECOND + value.it_value.tv_usec * 1000LL;
	}
	if (i >= POSIX_MONOTONIC)
		need(timer_gettime(timers[i].timer, &spec) == 0, "timer_gettime");
	else
		need(timerfd_gettime(timers[i].fd, &spec) == 0, "timerfd_gettime");
	return ns_of(spec.it_value);
}

static void look_at_timerfds(void)
{
	uint64_t count;
	int i;

	for (i = TIMERFD_MONOTONIC; i <= TIMERFD_MOMENT; i++)
		if (read(timers[i].fd, &count, sizeof count) == sizeof count)
			fired_ns[i] = now_ns(timers[i].clock);
}

static void tick(void)
{
	char left[1024], fired[1024];
	long long monotonic = now_ns(CLOCK_MONOTONIC), boottime = now_ns(CLOCK_BOOTTIME);
	long long realtime = now_ns(CLOCK_REALTIME);
	int i, left_length = 0, fired_length = 0;

	for (i = 0; i < TIMERS; i++)
		left_length += snprintf(left + left_length, sizeof left - left_length, "%s\"%s\": %lld", i ? ", " : "",
					timers[i].name, left_ns(i));
	for (i = 0; i < TIMERS; i++)
		fired_length += snprintf(fired + fired_length, sizeof fired - fired_length, "%s\"%s\": %lld",
					 i ? ", " : "", timers[i].name, (long long)fired_ns[i]);
	report_tick++;
	report_line("{\"tick\": %lld, \"pid\": %d, \"monotonic_ns\": %lld, \"boottime_ns\": %lld, \"realtime_ns\": %lld, "
		    "\"start_ns\": {\"monotonic\": %lld, \"boottime\": %lld, \"realtime\": %lld}, "
		    "\"left_ns\": {%s}, \"fired_ns\": {%s}, "
		    "\"woke_ns\": {\"relative\": %lld, \"absolute\": %lld}, \"interrupted\": %lld}\n",
		    report_tick, getpid(), monotonic, boottime, realtime, start_monotonic_ns, start_boottime_ns,
		    start_realtime_ns, left, fired, (long long)woke_relative_ns, (long long)woke_absolute_ns,
		    (long long)interrupted);
}

int main(int argc, char **argv)
{
	struct timespec rest;

	if (argc != 4) {
		fputs("usage: clocks LOG TIMERS_S SLEEP_S\n", stderr);
		return 2;
	}
	report_open(argv[1]);
	sleep_ns = (long long)(atof(argv[3]) * SECOND);
	start_monotonic_ns = now_ns(CLOCK_MONOTONIC);
	start_boottime_ns = now_ns(CLOCK_BOOTTIME);
	start_realtime_ns = now_ns(CLOCK_REALTIME);
	set_timers((long long)(atof(argv[2]) * SECOND));
	start_sleeper(sleep_relative);
	start_sleeper(sleep_absolute);
	for (;;) {
		look_at_timerfds();
		tick();
		rest = timespec_of(TICK_NS);
		while (nanosleep(&rest, &rest) < 0 && errno == EINTR)
			;
	}
}
