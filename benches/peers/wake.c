/* wake.c: the kernel's own wake-up by an eventfd, as a guest's kick is one: a thread on one core sleeps in read(), the other
 * writes to the eventfd and spins until the sleeper has said, in memory, that it runs.
 *
 *     wake CORE SLEEPERS-CORE TIMES-PER-SECOND COUNT
 *
 * Prints the median and the 99th percentile in microseconds. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "cores.h"

static int kick;
static atomic_long woken;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void *sleeper(void *core)
{
    uint64_t value;
    if (run_on(*(int *)core))
        exit(1);
    while (read(kick, &value, sizeof value) == sizeof value)
        atomic_fetch_add(&woken, 1);
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words)
{
    pthread_t thread;
    int core, times;
    double pause, *took;
    if (count != 5 || (times = atoi(words[4])) < 1 || !(took = calloc(times, sizeof *took))) {
        fprintf(stderr, "wake CORE SLEEPERS-CORE TIMES-PER-SECOND COUNT\n");
        return 2;
    }
    core = atoi(words[2]);
    pause = 1e6 / atof(words[3]);
    kick = eventfd(0, 0);
    if (kick < 0 || run_on(atoi(words[1])) || pthread_create(&thread, NULL, sleeper, &core)) {
        perror("wake");
        return 1;
    }
    for (int i = 0; i < times; i++) {
        uint64_t one = 1;
        double due = now() + pause, start;
        while ((start = now()) < due)
            ;
        if (write(kick, &one, sizeof one) != sizeof one)
            return 1;
        while (atomic_load(&woken) <= i)
            ;
        took[i] = now() - start;
    }
    qsort(took, times, sizeof *took, by_size);
    printf("%.2f %.2f\n", took[times / 2], took[(times - 1) * 99 / 100]);
    return 0;
}
