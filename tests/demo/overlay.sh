# Act two: two hypervisors and four tenants with the same addresses, in VXLAN, GRE, Geneve and a provider's VLAN.

tenants=(red green blue grey)
declare -A wire=([red]=underlay [green]=underlay [blue]=underlay [grey]=provider)
declare -A vlans=([red]=11/21 [green]=12/22 [blue]=13/23 [grey]=14/24)
declare -A type=([red]=vxlan [green]=gre [blue]=geneve [grey]=vlan)
declare -A number=([red]=5001 [green]=5001 [blue]=5001 [grey]=101)   # what it is called on the wire
declare -A fits=([red]=1450 [green]=1458 [blue]=1450 [grey]=1500)    # what a wire for 1500 bytes leaves of them
for tenant in "${tenants[@]}"; do address+=(["${tenant}1"]=10.0.0.1 ["${tenant}2"]=10.0.0.2); done
# Measured below, by tenant.
declare -A outer id_seen bytes_added mtu_told round_trip tcp_rate heard_elsewhere pings

# ── Two hypervisors ────────────────────────────────────────────────────────────────────────────────────────

# hypervisor N CORE: the configuration of hypervisor hN. Local VLANs are each hypervisor's own business: 11 on h1, 21 on h2.
hypervisor() {
    local n=$1 own=192.0.2.$1 other=192.0.2.$((3 - $1))
    cat <<END
[switch]
socket = "$work/h$n.sock"
cores = [$2]

[[bridge]]
name = "br-phy"
port = [
  { name = "uplink", type = "$fast" },
  { name = "vtep0", type = "vtep", address = ["$own/24"] },
]

[[bridge]]
name = "br-int"
segment = [
  { name = "red",   vlan = ${n}1, type = "vxlan",  id = 5001, vteps = ["$other"] },
  { name = "green", vlan = ${n}2, type = "gre",    id = 5001, vteps = ["$other"] },
  { name = "blue",  vlan = ${n}3, type = "geneve", id = 5001, vteps = ["$other"] },
  { name = "grey",  vlan = ${n}4, type = "vlan",   id = 101,  uplink = "provider" },
]
port = [
  { name = "vxlan0",  type = "vxlan",  remote-ip = "flow", key = "flow", local-ip = "$own" },
  { name = "gre0",    type = "gre",    remote-ip = "flow", key = "flow", local-ip = "$own" },
  { name = "geneve0", type = "geneve", remote-ip = "flow", key = "flow", local-ip = "$own" },
  { name = "provider", type = "$fast" },
  { name = "red$n",   type = "$fast", tag = ${n}1 },
  { name = "green$n", type = "$fast", tag = ${n}2 },
  { name = "blue$n",  type = "$fast", tag = ${n}3 },
  { name = "grey$n",  type = "$fast", tag = ${n}4 },
]
END
}

# vm TENANT N: its VM on hN. All VMs number N have the same MAC and IP address, whoever's they are.
vm() {
    host "$1$2" "${address[$1$2]}" "h$2" "02:00:00:00:00:0$2"
    # The kernel asks again for a neighbour it knows after this many seconds: not while we count who hears what.
    at "$1$2" sh -c 'echo 3600 >/proc/sys/net/ipv4/neigh/eth0/delay_first_probe_time'
}

# wires_to N: hN's cables into the bridges of the network between hypervisors.
wires_to() {
    local uplink provider
    for uplink in uplink:underlay provider:provider; do
        provider=${uplink#*:} uplink=${uplink%:*}
        ip -n "$id-wires" link add "h$1-$uplink" type veth peer name "$uplink" netns "$id-h$1"
        ip -n "$id-wires" link set "h$1-$uplink" master "$provider" up
        ip -n "$id-h$1" link set "$uplink" up
    done
}

# ── What is measured ───────────────────────────────────────────────────────────────────────────────────────

# capture WIRE: tcpdump where h1's cable meets the network, outside all switches, until `captured`.
capture() {
    local cable=h1-uplink
    [[ $1 == underlay ]] || cable=h1-provider
    : >"$work/capture"
    ip netns exec "$id-wires" tcpdump -i "$cable" -nn -tt -e -v -l --immediate-mode >"$work/capture" 2>"$work/tcpdump" &
    capture_pid=$!
    processes+=("$capture_pid")
    await "tcpdump listens on $cable" grep -q 'listening on' "$work/tcpdump"
}
captured() {
    kill -INT "$capture_pid"
    wait "$capture_pid" || true
    unset 'processes[-1]'
}
# One frame a line: tcpdump begins a frame with its time and goes on in further lines.
frames() { awk '/^[0-9]+\.[0-9]+ / && NR > 1 { print "" } { gsub(/[ \t]+/, " "); printf "%s ", $0 } END { print "" }' "$work/capture"; }
frame_captured() { frames | grep "$1"; }

# look TENANT: what its first echo request has on in the wire: kinds of outer header, what they call the tenant, and how
# many bytes they add to the 98 of the VM's frame; tcpdump's words in $seen.
look() {
    local frame
    frame=$(frames | awk '/echo request/ && !n++')
    [[ $frame =~ length\ ([0-9]+) ]] && bytes_added[$1]=$((BASH_REMATCH[1] - 98))
    [[ $frame =~ (vni|key|vlan)[\ =](0x[0-9a-f]+|[0-9]+) ]] && id_seen[$1]=$((BASH_REMATCH[2]))
    if [[ $frame =~ proto\ (UDP|GRE).*192.0.2.1(.[0-9]+)?\ \>\ 192.0.2.2(.[0-9]+)?:\ (VXLAN|GREv0|Geneve) ]]; then
        set -- "$1" "${BASH_REMATCH[@]:1}"
        outer[$1]="IPv4 $2${3:+ ${3#.} > ${4#.}}, $5"
    elif [[ $frame =~ ethertype\ (802.1Q) ]]; then
        outer[$1]=${BASH_REMATCH[1]}
    fi
    seen=$(grep -oE '(192\.0\.2\.1[^ ]* >|802\.1Q) .*(vni|key|vlan)[ =](0x)?[0-9a-f]+' <<<"$frame")
}

# Frames that VMs of other tenants got so far, all together.
heard_by_others() {
    local other n sum=0
    for other in "${tenants[@]}"; do
        [[ $other == "$1" ]] && continue
        for n in 1 2; do sum=$((sum + $(at "$other$n" cat /sys/class/net/eth0/statistics/rx_packets))); done
    done
    echo "$sum"
}

expect_id() {
    if (( id_seen[$1] == number[$1] )); then good "there, $1 is ${type[$1]} ${id_seen[$1]}"; else
        bad "there, $1 is ${id_seen[$1]}, and must be ${type[$1]} ${number[$1]}"
    fi
}

# A packet of 1500 bytes that must not be fragmented: the switch tells the VM how many bytes fit.
expect_mtu() {
    local said
    said=$(at "${1}1" ping -n -c 1 -W 1 -M do -s 1472 "${address[${1}2]}" 2>&1) || true
    mtu_told[$1]=$(sed -n 's/.*DF set (mtu = \([0-9]*\)).*/\1/p; s/^1480 bytes from .*/1500/p' <<<"$said")
    if [[ ${mtu_told[$1]} == "${fits[$1]}" ]]; then good "1500 bytes without fragments: ${1}1 learns that ${fits[$1]} fit"; else
        bad "1500 bytes without fragments: ${1}1 does not learn that ${fits[$1]} fit"
        indent <<<"$said"
    fi
}

# ── Renumbering ────────────────────────────────────────────────────────────────────────────────────────────

# pinging TENANT: a hundred times a second, until `pinged`.
pinging() {
    ip netns exec "$id-${1}1" ping -n -i 0.01 -W 1 "${address[${1}2]}" >"$work/$1.ping" 2>&1 &
    pings[$1]=$!
    processes+=($!)
    await "$1's first fifty replies" replied "$1" 50
}
replied() { (($(grep -c 'bytes from' "$work/$1.ping") >= $2)); }
# Leaves in $lost how many requests before the last reply got none.
pinged() {
    kill -INT "${pings[$1]}"
    wait "${pings[$1]}" || true
    lost=$(sed -n 's/.*icmp_seq=\([0-9]*\) .*/\1/p' "$work/$1.ping" | awk '{ n++; if ($1 > last) last = $1 } END { print last - n }')
}

renumber() {
    local started changed done_at count lost red_lost most more
    capture underlay
    pinging blue
    pinging red
    started=$EPOCHREALTIME
    show h1 segment set red id=6001
    changed=$EPOCHREALTIME
    await "h2 drops a VNI it does not know" unknown_on_h2
    show h2 segment set red id=6001
    done_at=$EPOCHREALTIME
    more=$(($(grep -c 'bytes from' "$work/red.ping") + 50))
    await "red's pings go on" replied red "$more"
    pinged red; red_lost=$lost
    pinged blue
    processes=("${processes[@]:0:${#processes[@]}-2}")
    captured
    count=$(vnis_after "$changed" | sort | uniq -c | xargs)
    if [[ $count =~ ^[0-9]+\ 6001$ ]]; then good "after h1's command had returned: ${count% *} frames of red, all with VNI 6001"; else
        bad "after h1's command had returned, frames of red had these VNIs: $count (count, VNI)"
    fi
    most=$(awk "BEGIN { print int(($done_at - $started) * 100) + 5 }")
    if (( red_lost <= most )); then good "red lost $red_lost pings, while its VNIs differed, and goes on"; else
        bad "red lost $red_lost pings, and only $most were sent while its VNIs differed"
    fi
    if (( lost == 0 )); then good "blue lost none"; else bad "blue lost $lost pings"; fi
    if grep -q '"red".* id = 6001' "$work/h1.toml"; then good "the file says so too"; else bad "the file does not say so"; fi
}
unknown_on_h2() { ctl h2 drops | grep unknown-segment; }
# The VNIs of VXLAN frames from h1 after a time.
vnis_after() { frames | awk -v after="$1" '$1 > after && / 192\.0\.2\.1\.[0-9]+ > .* VXLAN/ { sub(/.* vni /, ""); print $1 }'; }

# ── The act ────────────────────────────────────────────────────────────────────────────────────────────────

printf '\n%sSluice: two hypervisors, four tenants, one pair of addresses%s\n' "$bold" "$plain"
cat <<PICTURE

                    hypervisor h1                                        hypervisor h2
         ┌────────────────────────────────────┐               ┌────────────────────────────────────┐
         │ br-int                      br-phy │               │ br-phy                      br-int │
    red ─┤ VLAN 11 ─ VXLAN  5001 ┐            │   underlay    │            ┌ VXLAN  5001 ─ VLAN 21 ├─ red
  green ─┤ VLAN 12 ─ GRE    5001 ┼─ 192.0.2.1 ├───────────────┤ 192.0.2.2 ─┼ GRE    5001 ─ VLAN 22 ├─ green
   blue ─┤ VLAN 13 ─ Geneve 5001 ┘            │               │            └ Geneve 5001 ─ VLAN 23 ├─ blue
   grey ─┤ VLAN 14 ───── provider VLAN 101 ───┼───────────────┼─── provider VLAN 101 ───── VLAN 24 ├─ grey
         └────────────────────────────────────┘   provider    └────────────────────────────────────┘

   Every VM on the left is 10.0.0.1 with MAC 02:00:00:00:00:01, every VM on the right 10.0.0.2 with 02:00:00:00:00:02.
   underlay, provider: bridges of the kernel, MTU 1500. All ports of the hypervisors: $fast.
PICTURE

section "Build the hypervisors" "Each is one daemon with one file. What br-int, br-tun and br-ex do with flow rules are four lines here."
namespace wires
for name in underlay provider; do ip -n "$id-wires" link add "$name" up type bridge; done
for n in 1 2; do
    namespace "h$n"
    wires_to "$n"
    for tenant in "${tenants[@]}"; do vm "$tenant" "$n"; done
done
hypervisor 1 "$last_core" >"$work/h1.toml"
hypervisor 2 "$first_core" >"$work/h2.toml"
sed -n '/^\[\[bridge/,$p' "$work/h1.toml" | indent
echo
start_switch h1
start_switch h2
show h1 segment show

section "Each tenant in turn: ping, a look at the wire, the MTU, TCP" "tcpdump stands in the network between, outside both switches."
for tenant in "${tenants[@]}"; do
    heard=$(heard_by_others "$tenant")
    capture "${wire[$tenant]}"
    await "$tenant's VMs find each other" at "${tenant}1" ping -n -c 1 -W 1 "${address[${tenant}2]}"
    reaches "${tenant}1" "${tenant}2"
    round_trip[$tenant]=$rtt
    await "tcpdump sees $tenant" frame_captured 'echo reply'
    captured
    look "$tenant"
    printf '     on the wire: %s\n' "$seen"
    expect_id "$tenant"
    expect_mtu "$tenant"
    tcp "${tenant}1" "${tenant}2" silently
    tcp_rate[$tenant]=$(rate)
    heard_elsewhere[$tenant]=$(($(heard_by_others "$tenant") - heard))
    if (( heard_elsewhere[$tenant] == 0 )); then good "the six VMs of others heard none of it"; else
        bad "VMs of others heard ${heard_elsewhere[$tenant]} frames"
    fi
    echo
done

section "What h1 knows now" "Addresses behind a tunnel belong to a VTEP; the same MAC address is at home in four segments."
show h1 fdb show br-int
show h1 tunnel show
echo "   A frame of red's, step by step:"
show h1 trace br-int in_port=red1,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02,dl_type=0x0800
if command -v ovs-appctl >/dev/null; then
    printf '   %sh1$ ovs-appctl tnl/neigh/show%s\n' "$dim" "$plain"
    ovs-appctl -t "$work/h1.sock" tnl/neigh/show | indent
fi

section "Give red another VNI while it talks" "red pings a hundred times a second, and so does blue; red's VNI changes on h1, then on h2."
renumber

section "The table" "All of it measured in this run."
row='   %-7s %-11s %-6s %-6s %-34s %-6s %-5s %-8s %-8s %s\n'
# shellcheck disable=SC2059
printf "$row" TENANT "VLAN h1/h2" TYPE ID "OUTER HEADERS SEEN" BYTES MTU "PING ms" "Mbit/s" "OTHERS HEARD"
for tenant in "${tenants[@]}"; do
    # shellcheck disable=SC2059
    printf "$row" "$tenant" "${vlans[$tenant]}" "${type[$tenant]}" "${id_seen[$tenant]}" "${outer[$tenant]}" \
        "+${bytes_added[$tenant]}" "${mtu_told[$tenant]}" "${round_trip[$tenant]}" "${tcp_rate[$tenant]}" \
        "${heard_elsewhere[$tenant]} frames"
done

section "The books of both hypervisors"
show h1 drops
show h2 drops
for switch in h1 h2; do
    if ctl "$switch" --json ledger | grep -q '"balances": true'; then good "$switch: every frame is accounted for"; else
        bad "$switch: frames are missing"
        ctl "$switch" ledger | indent
    fi
done
echo
