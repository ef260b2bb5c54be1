/* cores.h: on which core a thread runs. Define _GNU_SOURCE before. */
#include <pthread.h>
#include <sched.h>

/* Pins the calling thread; 0, or why it cannot be. */
static int run_on(int core)
{
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    return pthread_setaffinity_np(pthread_self(), sizeof cores, &cores);
}
