/* blast.c: sends one frame again and again, as fast as the kernel can: BPF_PROG_TEST_RUN makes frames that are real
 * ("live") and gives each to blast.bpf.c, which redirects it to an interface. No socket and no system call per frame, so
 * one core offers more than any switch on another can take.
 *
 *     blast OBJECT FRAME      the compiled blast.bpf.c, and a file with the frame
 *
 * A run is as good as endless: at the begin and end of each the kernel waits for all its readers (synchronize_rcu of the BPF
 * dispatcher), tens of milliseconds in which nothing is sent, and the faster the switch the more of them. Ends by a signal. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#ifndef BPF_F_TEST_XDP_LIVE_FRAMES
#define BPF_F_TEST_XDP_LIVE_FRAMES (1U << 1)
#endif
enum { BATCH = 64, FRAMES = 1 << 30, LONGEST = 1514 };

static int load(const char *path)
{
    struct bpf_object *object = bpf_object__open_file(path, NULL);
    if (!object)
        return -1;
    struct bpf_program *program = bpf_object__find_program_by_name(object, "blast");
    struct bpf_program *other = bpf_object__find_program_by_name(object, "sink");
    if (!program || !other)
        return -1;
    bpf_program__set_autoload(other, false);
    if (bpf_object__load(object))
        return -1;
    return bpf_program__fd(program);
}

int main(int count, char **words)
{
    char frame[LONGEST];
    if (count != 3) {
        fprintf(stderr, "blast OBJECT FRAME\n");
        return 2;
    }
    FILE *file = fopen(words[2], "rb");
    size_t length = file ? fread(frame, 1, sizeof frame, file) : 0;
    int program = load(words[1]);
    if (!length || program < 0) {
        perror(length ? words[1] : words[2]);
        return 1;
    }
    struct xdp_md context = { .data_end = length };
    LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame, .data_size_in = length, .ctx_in = &context,
                .ctx_size_in = sizeof context, .repeat = FRAMES, .flags = BPF_F_TEST_XDP_LIVE_FRAMES,
                .batch_size = BATCH);
    int error;
    do {
        error = bpf_prog_test_run_opts(program, &options);
    } while (!error || error == -EINTR); // it was stopped for a while
    perror("blast: live frames, which need Linux 5.18 or later");
    return 1;
}
