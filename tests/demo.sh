#!/usr/bin/env bash
# The main job on real input, in two acts: two switches with a trunk between them, then two hypervisors with an
# overlay. Exits 0 only if everything that must work worked and everything that must not did not.
# Nothing outside the namespaces it makes is touched; they go away at the end, on failure and on Ctrl-C.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sluice=${SLUICE:-$root/target/release/sluice}
[[ -x $sluice ]] || { echo "demo: $sluice is not there; run: make demo" >&2; exit 1; }

# Without root: again, with all rights over a network of its own in a user namespace. Not as its root, or tcpdump would
# try to become somebody else.
rootless=${SLUICE_DEMO:-}
if (( EUID != 0 )) && [[ ! $rootless ]]; then
    exec unshare --user --map-current-user --keep-caps --net --mount \
        env SLUICE_DEMO=rootless SLUICE="$sluice" "${BASH_SOURCE[0]}" "$@"
fi
if [[ $rootless ]]; then
    mount -t tmpfs demo /run   # `ip netns` keeps its names there
fi

source "$root/tests/demo/house.sh"
source "$root/tests/demo/measure.sh"
fast=afxdp internal=yes
if [[ $rootless ]]; then
    fast=afpacket
    [[ -r /dev/net/tun && -w /dev/net/tun ]] || internal=
fi
cores=$(sed -n 's/^Cpus_allowed_list:\s*//p' /proc/self/status)
first_core=${cores%%[-,]*} last_core=${cores##*[-,]}

source "$root/tests/demo/switch.sh"
source "$root/tests/demo/overlay.sh"

printf '%s%d of %d expectations held.%s %s\n' "$bold" "$held" $((held + broken)) "$plain" "Tearing down."
(( broken == 0 ))
