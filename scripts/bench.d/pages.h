/* Pages that tell whether they are whole: a number that nobody can foresee, and its seal. */
#include <stdint.h>

#define PAGE 4096
#define WORDS (PAGE / 8)

static uint64_t state = 88172645463325252ull;

static uint64_t noise(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t seal(uint64_t number, uint64_t page) { return ~number ^ (page << 20); }

static void put(uint64_t *at, uint64_t page) {
    at[0] = noise();
    at[1] = seal(at[0], page);
}
