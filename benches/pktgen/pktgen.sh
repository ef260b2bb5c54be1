#!/bin/sh
# pktgen.sh: drives a switch with the packet generator of the Linux kernel (Documentation/networking/pktgen.rst), from
# a host, a namespace or a guest at one of its ports, and says how fast that was. Needs root and the module pktgen.
#
#     modprobe pktgen
#     DEV=eth0 DST_MAC=02:00:00:00:00:02 DST_IP=10.0.0.2 COUNT=1000000 benches/pktgen/pktgen.sh
#
# What arrived and what was dropped, and why, the switch says: `sluice port show`, `sluice drops`; how many cycles a frame
# took: `sluice poller show`. Send for ten seconds at least, from a core that no poller has, and take the median of
# several runs: the generator is a thread of the kernel, and its core's other work counts.
#
#   DEV      the interface to send on. Frames go straight to its driver, past all queues: it must be up
#   DST_MAC  where to; a station that the switch has heard, or every frame is flooded
#   DST_IP   where to (default 198.18.0.2, RFC 2544's network for benchmarks). Nobody needs to listen: UDP, port 9
#   SRC_IP   where from: the first address (default 198.18.1.1)
#   COUNT    frames to send (default 100000); 0: until it is interrupted
#   SIZE     bytes of a frame without FCS, 60 to the MTU + 14 (default 60, the worst case)
#   FLOWS    source addresses to go round, 1 to 65536 (default 1): above what the caches hold, it measures misses
#   BURST    frames for each call of the driver (default 1): more is faster, and as a busy sender sends
#   CLONE    times each frame is sent again as it is (default 0): saves making it. Not for drivers that keep frames, as
#            virtio-net, veth and TAP do: there it must be 0
#   RATE     frames a second; 0, the default, is as many as it can. For latency and loss, use less than the switch takes
#   VLAN     sends in this VLAN, tagged (default: untagged)
#   THREAD   the core of the generator's thread (default 0)
set -eu
: "${DEV:?the interface to send on}" "${DST_MAC:?the address to send to}"
DST_IP=${DST_IP:-198.18.0.2} SRC_IP=${SRC_IP:-198.18.1.1} COUNT=${COUNT:-100000} SIZE=${SIZE:-60} FLOWS=${FLOWS:-1}
BURST=${BURST:-1} CLONE=${CLONE:-0} RATE=${RATE:-0} THREAD=${THREAD:-0} VLAN=${VLAN:-}

proc=/proc/net/pktgen
modprobe pktgen 2>/dev/null || true
[ -d "$proc" ] || { echo "pktgen: no $proc: modprobe pktgen, as root" >&2; exit 1; }

# tell FILE COMMAND: what pktgen does not take, it says in the last line of the file.
tell() {
    echo "$2" >"$proc/$1" || { echo "pktgen: $1: $2: $(tail -n 1 "$proc/$1")" >&2; exit 1; }
}
# The last address of so many, in dotted form.
last() {
    echo "$1 $2" | tr . ' ' | {
        read -r a b c d n
        n=$((c * 256 + d + n - 1))
        [ $n -lt 65536 ] || { echo "pktgen: FLOWS=$2 from $1 on leaves its /16" >&2; exit 1; }
        echo "$a.$b.$((n / 256)).$((n % 256))"
    }
}

tell "kpktgend_$THREAD" "rem_device_all"
trap 'echo rem_device_all >"$proc/kpktgend_$THREAD"' EXIT
tell "kpktgend_$THREAD" "add_device $DEV"
tell "$DEV" "count $COUNT"
tell "$DEV" "pkt_size $SIZE"
tell "$DEV" "dst_mac $DST_MAC"
tell "$DEV" "dst $DST_IP"
tell "$DEV" "src_min $SRC_IP"
tell "$DEV" "src_max $(last "$SRC_IP" "$FLOWS")"
tell "$DEV" "clone_skb $CLONE"
tell "$DEV" "burst $BURST"
if [ "$RATE" -gt 0 ]; then tell "$DEV" "ratep $RATE"; else tell "$DEV" "delay 0"; fi
if [ -n "$VLAN" ]; then tell "$DEV" "vlan_id $VLAN"; fi
echo start >"$proc/pgctrl" # returns when all is sent
sed -n '/^Result/,$p' "$proc/$DEV"
