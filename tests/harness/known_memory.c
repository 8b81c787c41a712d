/* A program with known bytes in every kind of memory, whose threads have names; it prints a line of JSON with the
 * addresses, and then waits. The words are made from two halves, so that they stand nowhere else in its memory. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1 << 20)

char *known_heap;
char known_data[64] = "unset";
volatile double known_number = 0.5;
static volatile int never;

static void put(char *place, const char *half)
{
	memcpy(place, "needle:", 7);
	strcpy(place + 7, half);
}

static char *map_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	char *place;

	if (fd < 0 || ftruncate(fd, 8192))
		exit(1);
	place = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (place == MAP_FAILED)
		exit(1);
	return place + 4096;
}

static void *sleeper(void *name)
{
	prctl(PR_SET_NAME, name);
	for (;;)
		pause();
	return NULL;
}

static void __attribute__((noinline)) wait_for_ever(int depth)
{
	if (depth > 0)
		wait_for_ever(depth - 1);
	while (!never)
		pause();
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	char *mapped, *untouched, *shared, *memfd, *file, *ring;
	int fd;

	if (argc != 3)
		return 2;
	known_heap = malloc(4096);
	put(known_heap, "heap");
	put(known_data, "data");
	mapped = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* Across a page. */
	put(mapped + 8192 - 9, "mmap");
	untouched = mmap(NULL, 1L << 40, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	shared = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	put(shared + 12288, "shared");
	fd = memfd_create("frames", 0);
	if (ftruncate(fd, MIB))
		return 1;
	memfd = mmap(NULL, MIB - 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 4096);
	put(memfd + 20, "memfd");
	/* One in a file system that keeps it, and one in /dev/shm. */
	file = map_file(argv[1]);
	put(file, "file");
	ring = map_file(argv[2]);
	put(ring, "ring");
	if (pthread_create(&threads[0], NULL, sleeper, "worker-one") || pthread_create(&threads[1], NULL, sleeper, "worker-two"))
		return 1;
	if (fork() == 0) {
		put(known_heap, "child");
		prctl(PR_SET_NAME, "child");
		wait_for_ever(0);
	}
	printf("{\"heap\": %lu, \"data\": %lu, \"mmap\": %lu, \"untouched\": %lu, \"shared\": %lu, \"memfd\": %lu, \"file\": %lu, \"ring\": %lu}\n",
	       (long)known_heap, (long)known_data, (long)mapped + 8192 - 9, (long)untouched, (long)shared + 12288, (long)memfd + 20,
	       (long)file, (long)ring);
	fflush(stdout);
	wait_for_ever(2);
	return 0;
}
