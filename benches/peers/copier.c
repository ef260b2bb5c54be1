/* copier.c: the least that a process can do between a TAP device or a packet socket and another while TCP crosses: frames of up
 * to 64 KiB whole, by the kernel's segmentation headers; one buffer, which stays in the core's cache; one call to read a frame and
 * one to write it, both ways in turns, without ever sleeping. It looks at nothing. What is faster copies less.
 *
 *     copier tap:NAME|packet:IFACE tap:NAME|packet:IFACE
 *
 * Ends by a signal. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 8, HEADER = 10, BUFFER = 4 << 20 };

static int open_packet(const char *name)
{
    struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = if_nametoindex(name) };
    struct packet_mreq all = { .mr_ifindex = at.sll_ifindex, .mr_type = PACKET_MR_PROMISC };
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETH_P_ALL)), yes = 1, buffer = BUFFER;
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) ||
        setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) ||
        setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &yes, sizeof yes) ||
        setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) ||
        setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer) ||
        setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof yes))
        return -1;
    return fd;
}

static int open_tap(const char *name)
{
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) ||
        ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN))
        return -1;
    return fd;
}

static int open_end(const char *word)
{
    if (!strncmp(word, "tap:", 4))
        return open_tap(word + 4);
    if (!strncmp(word, "packet:", 7))
        return open_packet(word + 7);
    errno = EINVAL;
    return -1;
}

/* Copies what has arrived, at most a batch. */
static void copy(int from, int to)
{
    static char frame[HEADER + (1 << 16)];
    for (int taken = 0; taken < BATCH; taken++) {
        ssize_t length = read(from, frame, sizeof frame);
        if (length < 0)
            return;
        /* What is refused is lost, as a device that is down loses it. */
        (void)!write(to, frame, length);
    }
}

int main(int count, char **words)
{
    int ends[2];
    if (count != 3) {
        fprintf(stderr, "copier tap:NAME|packet:IFACE tap:NAME|packet:IFACE\n");
        return 2;
    }
    for (int n = 0; n < 2; n++)
        if ((ends[n] = open_end(words[1 + n])) < 0) {
            perror(words[1 + n]);
            return 1;
        }
    for (;;) {
        copy(ends[0], ends[1]);
        copy(ends[1], ends[0]);
    }
}
