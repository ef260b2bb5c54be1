/* core_to_core.c: how long it takes until one core sees what another wrote: half of the time in which a line of cache goes from one to
 * the other and back, the least of some tries. Cores that share a cache need a fraction of what others need, and where a hypervisor runs two virtual
 * cores changes by the minute.
 *
 *     core_to_core CORE CORE
 *
 * Prints nanoseconds. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cores.h"

enum { TRIES = 20, TRIPS = 1000 };

/* Odd: there. Even: back again. */
static _Alignas(128) atomic_long ball;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void *play(void *core)
{
    if (run_on(*(int *)core))
        exit(1);
    for (long seen = 1; seen < 2L * TRIES * TRIPS; seen += 2) {
        while (atomic_load(&ball) != seen)
            ;
        atomic_store(&ball, seen + 1);
    }
    return NULL;
}

int main(int count, char **words)
{
    double least = 1e9;
    pthread_t thread;
    int core;
    if (count != 3) {
        fprintf(stderr, "core_to_core CORE CORE\n");
        return 2;
    }
    core = atoi(words[2]);
    if (run_on(atoi(words[1])) || pthread_create(&thread, NULL, play, &core)) {
        perror("core_to_core");
        return 1;
    }
    for (long i = 0, sent = 1; i < TRIES; i++) {
        double start = now(), took;
        for (int trip = 0; trip < TRIPS; trip++, sent += 2) {
            atomic_store(&ball, sent);
            while (atomic_load(&ball) == sent)
                ;
        }
        took = (now() - start) / TRIPS / 2;
        least = took < least ? took : least;
    }
    pthread_join(thread, NULL);
    printf("%.1f\n", least);
    return 0;
}
