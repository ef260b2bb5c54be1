/* relay.c: the least that a process which sleeps in the kernel can do between two interfaces: recv() on a packet socket of
 * the first, which blocks, and send() on one of the second. With --tap it makes two TAP devices of these names, and the calls
 * are read() and write(). What a switch takes longer for a frame that wakes it is its own.
 *
 *     relay [--tap] IFACE IFACE
 *
 * Ends by a signal. */
#include <arpa/inet.h>
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

static int open_socket(const char *name)
{
    struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = if_nametoindex(name) };
    struct packet_mreq all = { .mr_ifindex = at.sll_ifindex, .mr_type = PACKET_MR_PROMISC };
    int socket_fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)), yes = 1;
    if (socket_fd < 0 || bind(socket_fd, (struct sockaddr *)&at, sizeof at) ||
        setsockopt(socket_fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &all, sizeof all) ||
        setsockopt(socket_fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof yes))
        return -1;
    return socket_fd;
}

static int open_tap(const char *name)
{
    struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
    int fd = open("/dev/net/tun", O_RDWR);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    return fd < 0 || ioctl(fd, TUNSETIFF, &request) ? -1 : fd;
}

int main(int count, char **words)
{
    char frame[1 << 16];
    int from, to, taps = count == 4 && !strcmp(words[1], "--tap");
    int (*open_on)(const char *) = taps ? open_tap : open_socket;
    if (count != 3 + taps) {
        fprintf(stderr, "relay [--tap] IFACE IFACE\n");
        return 2;
    }
    if ((from = open_on(words[1 + taps])) < 0 || (to = open_on(words[2 + taps])) < 0) {
        perror("relay");
        return 1;
    }
    for (;;) {
        ssize_t length = read(from, frame, sizeof frame);
        if (length < 0 || write(to, frame, length) < 0) {
            perror("relay");
            return 1;
        }
    }
}
