/* The job that `scripts/bench run` runs: it computes all the time, in much memory, of which it changes a share.
 *
 * Usage: busy SIZE_MIB UNITS PAGES_PER_UNIT
 *
 * A unit is a fixed piece of work. In each one it changes so many pages (a fraction adds up) at random places. When all
 * are done it prints how long they took, and how much time of the processor: two numbers, in seconds. Filling the memory
 * does not count. A page that is not as it was left ends it with 1.
 * A page holds a number, its complement mixed with the page's own number, noise up to the half of it, a text, and
 * nothing in the last quarter.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "pages.h"

#define STEPS_PER_UNIT 1000000

static double now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **words) {
    if (count != 4) {
        fprintf(stderr, "usage: busy SIZE_MIB UNITS PAGES_PER_UNIT\n");
        return 2;
    }
    uint64_t pages = strtoull(words[1], NULL, 10) * 256, units = strtoull(words[2], NULL, 10);
    double per_unit = strtod(words[3], NULL), owed = 0;
    uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || !pages) {
        perror("busy");
        return 2;
    }
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t *at = memory + page * WORDS;
        put(at, page);
        for (int word = 2; word < WORDS / 2; word++)
            at[word] = noise();
        for (int word = WORDS / 2; word < WORDS * 3 / 4; word++)
            at[word] = page % 4096;
    }
    double began = now(CLOCK_MONOTONIC), cpu_began = now(CLOCK_PROCESS_CPUTIME_ID);
    for (uint64_t unit = 0; unit < units; unit++) {
        for (int step = 0; step < STEPS_PER_UNIT; step++)
            noise();
        for (owed += per_unit; owed >= 1; owed--) {
            uint64_t page = noise() % pages, *at = memory + page * WORDS;
            if (at[1] != seal(at[0], page))
                return 1;
            put(at, page);
        }
    }
    printf("%.6f %.6f\n", now(CLOCK_MONOTONIC) - began, now(CLOCK_PROCESS_CPUTIME_ID) - cpu_began);
    return 0;
}
