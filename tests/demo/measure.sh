# Who reaches whom, and how much gets through.

declare -A address   # of each host
declare -A place     # the namespace a host lives in, if it has none of its name

ping_from() { at "${place[$1]:-$1}" ping -n -c "$3" -i 0.2 -W 1 "${address[$2]}"; }
# Leaves the average round trip, in ms, in $rtt.
reaches() {
    local said
    rtt='-'
    if said=$(ping_from "$1" "$2" 5 2>&1); then
        rtt=$(sed -n 's|^rtt [^=]*= [^/]*/\([^/]*\)/.*|\1|p' <<<"$said")
        good "$1 → $2: answered, $rtt ms on average${3:+  ($3)}"
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

# load WATCH FROM TO OPTIONS...: iperf3 between two hosts; WATCH reads what it says; leaves its summary in $work/iperf.
load() {
    local watch=$1 from=$2 to=$3 server
    shift 3
    ip netns exec "$id-${place[$to]:-$to}" iperf3 -s -1 >/dev/null 2>"$work/iperf-server.log" &
    server=$!
    processes+=("$server")
    await "iperf3 server on $to" listening "${place[$to]:-$to}" 5201
    at "${place[$from]:-$from}" iperf3 -c "${address[$to]}" -i 1 -f m --forceflush "$@" 2>&1 |
        tee "$work/iperf" | "$watch" || true
    wait "$server" || true
    unset 'processes[-1]'
}
each_second() {
    awk '/sec/ && /Mbits/ && !/sender|receiver/ { for (i = 1; i <= NF; i++) if ($i == "Mbits/sec") printf "     second %d: %6.0f Mbit/s\n", ++n, $(i-1); fflush() }'
}
silently() { cat >/dev/null; }
listening() { at "$1" ss -Hltn "sport = :$2" | grep -q .; }

more_than() { awk "BEGIN { exit !($1 > $2) }"; }

# The receiver's rate, in Mbit/s.
rate() { awk '/receiver/ { for (i = 1; i <= NF; i++) if ($i == "Mbits/sec") print $(i-1) }' "$work/iperf" | tail -n 1; }

# tcp FROM TO [WATCH]
tcp() {
    local got
    load "${3:-each_second}" "$1" "$2" -t 4
    got=$(rate)
    if more_than "${got:-0}" 0; then good "TCP $1 → $2: $got Mbit/s arrived"; else
        bad "TCP $1 → $2: nothing arrived"; tail -n 5 "$work/iperf" | indent
    fi
}
# A machine busy with other things drops datagrams at the receiver's socket: up to three tries.
udp() {
    local got lost
    for _ in 1 2 3; do
        load each_second "$1" "$2" -t 4 -u -b "$3M" -l 1400
        got=$(rate)
        lost=$(sed -n 's/.*(\([0-9.e+-]*\)%) *receiver.*/\1/p' "$work/iperf" | tail -n 1)
        if more_than "${got:-0}" 0 && more_than 5 "${lost:-100}"; then
            good "UDP $1 → $2: $got of $3 Mbit/s arrived, $lost % lost"
            return
        fi
    done
    bad "UDP $1 → $2: ${got:-0} of $3 Mbit/s arrived, ${lost:-100} % lost (5 % is the most a demo may lose)"
    tail -n 5 "$work/iperf" | indent
}

