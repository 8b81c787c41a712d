/* The program that `scripts/bench migrate` moves: much memory, of which a share is changed every second.
 *
 * Usage: dirtying SIZE_MIB PERCENT_PER_S LOG
 *
 * Every millisecond it changes pages at random places, and appends a record to LOG: CLOCK_REALTIME in nanoseconds, and
 * how many pages it has changed so far, 8 bytes each. A gap in the times is a time in which it did not run. A page that
 * is not as it was left makes a record whose time is 0.
 * A page holds a number, its complement mixed with the page's own number, noise up to the half of it, a text, and
 * nothing in the last quarter.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "pages.h"

#define TICK_NS 1000000
/* What was missed in a longer pause is not made up for. */
#define MISSED_NS (5 * TICK_NS)

static uint64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

int main(int count, char **words) {
    if (count != 4) {
        fprintf(stderr, "usage: dirtying SIZE_MIB PERCENT_PER_S LOG\n");
        return 2;
    }
    uint64_t pages = strtoull(words[1], NULL, 10) * 256;
    double per_ns = pages * strtod(words[2], NULL) / 100 / 1e9;
    int log = open(words[3], O_WRONLY | O_APPEND | O_CREAT, 0644);
    uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (log < 0 || memory == MAP_FAILED || !pages) {
        perror("dirtying");
        return 1;
    }
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t *at = memory + page * WORDS;
        put(at, page);
        for (int word = 2; word < WORDS / 2; word++)
            at[word] = noise();
        for (int word = WORDS / 2; word < WORDS * 3 / 4; word++)
            at[word] = page % 4096;
    }
    double owed = 0;
    uint64_t record[2] = {0, 0}, last = now(CLOCK_MONOTONIC);
    for (;;) {
        uint64_t time = now(CLOCK_MONOTONIC), passed = time - last;
        last = time;
        owed += per_ns * (passed < MISSED_NS ? passed : MISSED_NS);
        int wrong = 0;
        for (; owed >= 1; owed--, record[1]++) {
            uint64_t page = noise() % pages, *at = memory + page * WORDS;
            wrong |= at[1] != seal(at[0], page);
            put(at, page);
        }
        record[0] = wrong ? 0 : now(CLOCK_REALTIME);
        if (write(log, record, sizeof record) != sizeof record)
            return 1;
        struct timespec tick = {0, TICK_NS};
        nanosleep(&tick, NULL);
    }
}
