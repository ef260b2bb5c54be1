#!/usr/bin/env bash
# The main job on real input: two switches, a trunk between them, two VLANs, six hosts in namespaces of their
# own. Exits 0 only if everything that must work worked and everything that must not did not.
# Nothing outside the namespaces it makes is touched; they go away at the end, on failure and on Ctrl-C.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sluice=${SLUICE:-$root/target/release/sluice}
[[ -x $sluice ]] || { echo "demo: $sluice is not there; run: make demo" >&2; exit 1; }

# Without root: again, as root of a user namespace with a network of its own.
if (( EUID != 0 )); then
    exec unshare --user --map-root-user --net --mount env SLUICE_DEMO=rootless SLUICE="$sluice" "${BASH_SOURCE[0]}" "$@"
fi
rootless=${SLUICE_DEMO:-}
if [[ $rootless ]]; then
    mount -t tmpfs demo /run   # `ip netns` keeps its names there
fi

# ── Words ──────────────────────────────────────────────────────────────────────────────────────────────────

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
else
    bold='' dim='' green='' red='' plain=''
fi
sections=0 held=0 broken=0

section() {
    sections=$((sections + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$sections" "$1" "$plain"
    [[ -z ${2-} ]] || printf '%s%s%s\n' "$dim" "$2" "$plain"
    echo
}
good() { held=$((held + 1)); printf '   %s✓%s %s\n' "$green" "$plain" "$1"; }
bad() { broken=$((broken + 1)); printf '   %s✗ %s%s\n' "$red" "$1" "$plain"; }
indent() { sed 's/^/   /'; }
# Shows a command as the operator would type it, then what it says.
show() {
    local switch=$1
    shift
    printf '   %s%s$ sluice %s%s\n' "$dim" "$switch" "$*" "$plain"
    ctl "$switch" "$@" 2>&1 | indent
    echo
}

# ── The house: everything made here is named after this process and listed for teardown ────────────────────

id=sluice$$
work=$(mktemp -d "${TMPDIR:-/tmp}/$id.XXXXXX")
processes=() namespaces=()

finish() {
    local code=$? pid namespace
    trap - EXIT INT TERM
    set +e
    for pid in "${processes[@]}"; do kill -TERM "$pid" 2>/dev/null; done
    for pid in "${processes[@]}"; do
        for _ in {1..50}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    for namespace in "${namespaces[@]}"; do ip netns del "$namespace"; done
    if (( code == 1 )); then
        for log in "$work"/*.log; do
            [[ -s $log ]] && printf '\n%s\n' "${log##*/}:" && tail -n 20 "$log" | indent
        done
    fi
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'echo; echo "interrupted: tearing down"; exit 130' INT
trap 'exit 143' TERM

at() { local where=$1; shift; ip netns exec "$id-$where" "$@"; }
ctl() { local switch=$1; shift; "$sluice" --socket "$work/$switch.sock" "$@"; }

namespace() {
    ip netns add "$id-$1"
    namespaces+=("$id-$1")
    at "$1" sh -c 'echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore' # an address answers on its own interface only
    at "$1" bash -c 'echo 1 | tee /proc/sys/net/ipv6/conf/{all,default}/disable_ipv6 >/dev/null' # a shorter flow table to read
    ip -n "$id-$1" link set lo up
}

# host NAME ADDRESS SWITCH: a namespace whose eth0 is plugged into SWITCH's namespace, there named NAME.
host() {
    namespace "$1"
    ip -n "$id-$3" link add "$1" type veth peer name eth0 netns "$id-$1"
    ip -n "$id-$1" addr add "$2/24" dev eth0
    ip -n "$id-$1" link set eth0 up
    ip -n "$id-$3" link set "$1" up
}

# await WHAT COMMAND...: until the command succeeds, ten seconds at most.
await() {
    local what=$1
    shift
    for _ in {1..100}; do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    bad "$what: not within 10 s"
    return 1
}

start_switch() {
    # Not by `at`: a function in the background would be a shell whose end leaves the daemon behind.
    ip netns exec "$id-$1" "$sluice" run --config "$work/$1.toml" >"$work/$1.log" 2>&1 &
    processes+=($!)
    await "switch $1 answers" ctl "$1" show
}

# port NAME TYPE SETTING: one port of a configuration file.
port() { printf '\n[[bridge.port]]\nname = "%s"\ntype = "%s"\n%s\n' "$1" "$2" "$3"; }
# head SWITCH CORE: how each configuration file begins.
head_of() { printf '[switch]\nsocket = "%s"\ncores = [%s]\n\n[[bridge]]\nname = "br0"\n' "$work/$1.sock" "$2"; }

# ── Expectations ───────────────────────────────────────────────────────────────────────────────────────────

declare -A address=([alice]=10.0.0.1 [bob]=10.0.0.2 [int0]=10.0.0.3 [carol]=10.0.0.4 [dave]=10.0.0.5 [erin]=10.0.0.6)
declare -A place=([int0]=left)   # an internal port's address lives with its switch

ping_from() { at "${place[$1]:-$1}" ping -n -c "$3" -i 0.2 -W 1 "${address[$2]}"; }
reaches() {
    local said rtt
    if said=$(ping_from "$1" "$2" 5 2>&1); then
        rtt=$(sed -n 's|^rtt [^=]*= [^/]*/\([^/]*\)/.*|\1|p' <<<"$said")
        good "$1 → $2: answered, ${rtt:-?} ms on average${3:+  ($3)}"
    else
        bad "$1 → $2: no answer${3:+  ($3)}"
        tail -n 4 <<<"$said" | indent
    fi
}
must_not_reach() {
    if ping_from "$1" "$2" 3 >/dev/null 2>&1; then
        bad "$1 → $2: answered, and must not${3:+  ($3)}"
    else
        good "$1 → $2: no answer, as it must be${3:+  ($3)}"
    fi
}

# load FROM TO OPTIONS...: iperf3 between two hosts, a line a second; leaves its summary in $work/iperf.
load() {
    local from=$1 to=$2 server
    shift 2
    ip netns exec "$id-${place[$to]:-$to}" iperf3 -s -1 >/dev/null 2>"$work/iperf-server.log" &
    server=$!
    processes+=("$server")
    await "iperf3 server on $to" listening "${place[$to]:-$to}" 5201
    at "${place[$from]:-$from}" iperf3 -c "${address[$to]}" -t 4 -i 1 -f m --forceflush "$@" 2>&1 | tee "$work/iperf" |
        awk '/sec/ && /Mbits/ && !/sender|receiver/ { for (i = 1; i <= NF; i++) if ($i == "Mbits/sec") printf "     second %d: %6.0f Mbit/s\n", ++n, $(i-1); fflush() }' || true
    wait "$server" || true
    unset 'processes[-1]'
}
listening() { at "$1" ss -Hltn "sport = :$2" | grep -q .; }

# The receiver's rate, in Mbit/s.
rate() { awk '/receiver/ { for (i = 1; i <= NF; i++) if ($i == "Mbits/sec") print $(i-1) }' "$work/iperf" | tail -n 1; }

tcp() {
    load "$1" "$2"
    local got
    got=$(rate)
    if awk "BEGIN { exit !(${got:-0} > 0) }"; then good "TCP $1 → $2: $got Mbit/s arrived"; else
        bad "TCP $1 → $2: nothing arrived"; tail -n 5 "$work/iperf" | indent
    fi
}
# A machine busy with other things drops datagrams at the receiver's socket: up to three tries.
udp() {
    local got lost
    for _ in 1 2 3; do
        load "$1" "$2" -u -b "$3M" -l 1400
        got=$(rate)
        lost=$(sed -n 's/.*(\([0-9.e+-]*\)%) *receiver.*/\1/p' "$work/iperf" | tail -n 1)
        if awk "BEGIN { exit !(${got:-0} > 0 && ${lost:-100} < 5) }"; then
            good "UDP $1 → $2: $got of $3 Mbit/s arrived, $lost % lost"
            return
        fi
    done
    bad "UDP $1 → $2: ${got:-0} of $3 Mbit/s arrived, ${lost:-100} % lost (5 % is the most a demo may lose)"
    tail -n 5 "$work/iperf" | indent
}

# ── The demo ───────────────────────────────────────────────────────────────────────────────────────────────

fast=afxdp internal=yes
if [[ $rootless ]]; then
    fast=afpacket
    [[ -r /dev/net/tun && -w /dev/net/tun ]] || internal=
fi

printf '%sSluice: two switches, two VLANs, one subnet%s\n' "$bold" "$plain"
cat <<PICTURE

             switch left                     switch right
          ┌───────────────┐               ┌───────────────┐
   alice ─┤ VLAN 10       │  trunk 10,20  │       VLAN 10 ├─ dave
     bob ─┤ VLAN 10       ├───────────────┤       VLAN 20 ├─ erin
    int0 ─┤ VLAN 10       │               └───────────────┘
   carol ─┤ VLAN 20       │
          └───────────────┘

   alice, carol, dave, trunk: $fast    bob, erin: afpacket    int0: internal, a device of left's own host
   Every host is in 10.0.0.0/24, so nothing but the VLANs keeps them apart.
PICTURE
if [[ $rootless ]]; then
    echo
    echo "   Not root: left out AF_XDP, which the kernel gives to root only; its ports are AF_PACKET here."
    [[ $internal ]] || echo "   Left out int0 too: /dev/net/tun is not yours to open (on most systems it is)."
fi

section "Build the hosts and start the switches" "Each switch is a daemon in a namespace of its own, with one file as its whole state."
namespace left
namespace right
ip -n "$id-left" link add trunk type veth peer name trunk netns "$id-right"
ip -n "$id-left" link set trunk up
ip -n "$id-right" link set trunk up
host alice "${address[alice]}" left
host bob "${address[bob]}" left
host carol "${address[carol]}" left
host dave "${address[dave]}" right
host erin "${address[erin]}" right

cores=$(sed -n 's/^Cpus_allowed_list:\s*//p' /proc/self/status)
{
    head_of left "${cores##*[-,]}"
    port alice "$fast" 'tag = 10'
    port bob afpacket 'tag = 10'
    [[ -z $internal ]] || port int0 internal 'tag = 10'
    port carol "$fast" 'tag = 20'
    port trunk "$fast" 'trunks = [10, 20]'
} >"$work/left.toml"
{
    head_of right "${cores%%[-,]*}"
    port dave "$fast" 'tag = 10'
    port erin afpacket 'tag = 20'
    port trunk "$fast" 'trunks = [10, 20]'
} >"$work/right.toml"
start_switch left
start_switch right
if [[ $internal ]]; then
    await "int0 appears" ip -n "$id-left" link show int0
    ip -n "$id-left" addr add "${address[int0]}/24" dev int0
    ip -n "$id-left" link set int0 up
fi
show left port show
show right port show

section "Hosts of one VLAN reach each other" "On one switch, across kinds of port, and over the trunk."
reaches alice bob "$fast to afpacket"
[[ -z $internal ]] || reaches alice int0 "$fast to internal"
[[ -z $internal ]] || reaches int0 bob "internal to afpacket"
reaches alice dave "VLAN 10 over the trunk"
reaches carol erin "VLAN 20 over the trunk"
echo
show left fdb show

section "Hosts of different VLANs do not" "Same subnet, same switch: their ARP requests never meet."
must_not_reach alice carol "VLAN 10 to 20, one switch"
must_not_reach dave erin "VLAN 10 to 20, one switch"
must_not_reach bob erin "VLAN 10 to 20, over the trunk"
echo
echo "   Why? The slow path explains what it would do with such a frame, and changes nothing by it:"
carol_mac=$(at carol cat /sys/class/net/eth0/address)
show left trace br0 "in_port=alice,dl_src=02:00:00:00:00:99,dl_dst=$carol_mac,dl_type=0x0800"

section "TCP over the trunk" "alice → left → trunk → right → dave, four seconds, with the checksums of veth left partial as the kernel does."
tcp alice dave
echo
echo "   Each of those frames took one lookup. The decisions in left's cache, and what they cost its poller:"
show left flow show
show left poller show

section "UDP over the trunk, the other VLAN" "carol → erin, 100 Mbit/s offered."
udp carol erin 100

section "TCP between kinds of port" "A GSO frame of up to 64 KiB crosses from int0 whole; it is cut only if the port it leaves by needs that."
if [[ $internal ]]; then tcp int0 bob; else tcp alice bob; fi

section "Change it while it runs" "One command moves carol to VLAN 10. It edits the running switch and the file, comments kept."
show left port set carol tag=10
reaches alice carol "now one VLAN"
must_not_reach carol erin "erin stayed in VLAN 20"
if grep -A 3 'name = "carol"' "$work/left.toml" | grep -q 'tag = 10'; then good "the file says tag = 10"; else bad "the file does not say tag = 10"; fi

section "The books" "Every frame is sent or counted as a drop with its reason."
show left port show
show left drops

printf '%s%d of %d expectations held.%s %s\n' "$bold" "$held" $((held + broken)) "$plain" "Tearing down."
(( broken == 0 ))
