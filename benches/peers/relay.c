/* relay.c: the least that a process which sleeps in the kernel can do between two interfaces: recv() on a packet socket of
 * the first, which blocks, and send() on one of the second. What a switch takes longer for a frame that wakes it is its own.
 *
 *     relay IFACE IFACE
 *
 * Ends by a signal. */
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <stdio.h>
#include <sys/socket.h>

static int open_on(const char *name)
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

int main(int count, char **words)
{
    char frame[1 << 16];
    int from, to;
    if (count != 3) {
        fprintf(stderr, "relay IFACE IFACE\n");
        return 2;
    }
    if ((from = open_on(words[1])) < 0 || (to = open_on(words[2])) < 0) {
        perror("relay");
        return 1;
    }
    for (;;) {
        ssize_t length = recv(from, frame, sizeof frame, 0);
        if (length < 0 || send(to, frame, length, 0) < 0) {
            perror("relay");
            return 1;
        }
    }
}
