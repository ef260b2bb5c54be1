// blast.bpf.c: what the generator does with each frame that it makes (sends it by OUT), and what the sink does with each
// that arrives. Compiled for each run with -DOUT=interface index.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int blast(struct xdp_md *frame)
{
    return bpf_redirect(OUT, 0);
}

SEC("xdp")
int sink(struct xdp_md *frame)
{
    return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
