/* How many calls a second this process makes, for `scripts/bench inodes`: a library, called by rates.py.
 *
 * Every function calls in a loop for about so many seconds, and returns calls a second, or -1 if one failed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BATCH 32
#define BLOCK 4096

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

#define RATE(call)                                                                                                  \
    double began = now(), passed;                                                                                   \
    unsigned long calls = 0;                                                                                        \
    do {                                                                                                            \
        for (int i = 0; i < BATCH; i++, calls++)                                                                    \
            if ((call) < 0)                                                                                         \
                return -1;                                                                                          \
    } while ((passed = now() - began) < seconds);                                                                   \
    return calls / passed

double rate_stat(const char *path, double seconds) {
    struct stat status;
    RATE(stat(path, &status));
}

double rate_fstat(const char *path, double seconds) {
    struct stat status;
    static int fd = -1;
    if (fd < 0)
        fd = open(path, O_RDONLY);
    RATE(fstat(fd, &status));
}

static int open_and_close(const char *path) {
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : close(fd);
}

double rate_open(const char *path, double seconds) {
    RATE(open_and_close(path));
}

double rate_read(const char *path, double seconds) {
    static char block[BLOCK];
    static int fd = -1;
    if (fd < 0)
        fd = open(path, O_RDONLY);
    RATE(pread(fd, block, BLOCK, 0));
}

double rate_write(const char *path, double seconds) {
    static char block[BLOCK];
    static int fd = -1;
    if (fd < 0)
        fd = open(path, O_WRONLY);
    RATE(pwrite(fd, block, BLOCK, 0));
}
