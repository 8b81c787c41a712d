/* What the C subjects share: the log, the clocks, and giving up with a reason.
 *
 * Rule: a line is one write(2), so that it is there as a whole or not at all, whenever the program is killed. */

#ifndef REPORT_H
#define REPORT_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
#define SECOND 1000000000LL

static int report_fd = -1;
static long long report_tick;

static inline long long now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec * SECOND + now.tv_nsec;
}

static inline struct timespec timespec_of(long long ns)
{
	return (struct timespec){ .tv_sec = ns / SECOND, .tv_nsec = ns % SECOND };
}

static inline long long ns_of(struct timespec t)
{
	return t.tv_sec * SECOND + t.tv_nsec;
}

static void report_line(const char *format, ...)
{
	char line[4096];
	va_list values;
	int length;

	va_start(values, format);
	length = vsnprintf(line, sizeof line, format, values);
	va_end(values);
	if (length < 0 || length >= (int)sizeof line || write(report_fd, line, length) != length)
		exit(98);
}

/* Say what is wrong, and end. */
static void fail(const char *what)
{
	report_line("{\"tick\": %lld, \"pid\": %d, \"error\": \"%s (errno: %s)\"}\n", report_tick, getpid(), what,
		    strerror(errno));
	exit(99);
}

static void need(int works, const char *what)
{
	if (!works)
		fail(what);
}

static void report_open(const char *path)
{
	report_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
	if (report_fd < 0) {
		perror(path);
		exit(2);
	}
}

#endif
