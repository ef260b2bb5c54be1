# Words on the terminal, and the house: everything made is named after this process and listed for teardown.

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
indent() { sed 's/^./   &/'; }
# Shows a command as the operator would type it, then what it says.
show() {
    local switch=$1
    shift
    printf '   %s%s$ sluice %s%s\n' "$dim" "$switch" "$*" "$plain"
    ctl "$switch" "$@" 2>&1 | indent
    echo
}

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
    if (( code != 0 && code != 130 && code != 143 )); then
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

# host NAME ADDRESS SWITCH [MAC]: a namespace whose eth0 is plugged into SWITCH's namespace, there named NAME.
host() {
    namespace "$1"
    ip -n "$id-$3" link add "$1" type veth peer name eth0 netns "$id-$1"
    [[ -z ${4-} ]] || ip -n "$id-$1" link set eth0 address "$4"
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
