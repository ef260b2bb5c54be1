# Act one: two switches, two VLANs, one subnet.

address+=([alice]=10.0.0.1 [bob]=10.0.0.2 [int0]=10.0.0.3 [carol]=10.0.0.4 [dave]=10.0.0.5 [erin]=10.0.0.6)
place+=([int0]=left)   # an internal port's address lives with its switch

# port NAME TYPE SETTING: one port of a configuration file.
port() { printf '\n[[bridge.port]]\nname = "%s"\ntype = "%s"\n%s\n' "$1" "$2" "$3"; }
# head SWITCH CORE: how each configuration file begins.
head_of() { printf '[switch]\nsocket = "%s"\ncores = [%s]\n\n[[bridge]]\nname = "br0"\n' "$work/$1.sock" "$2"; }

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

{
    head_of left "$last_core"
    port alice "$fast" 'tag = 10'
    port bob afpacket 'tag = 10'
    [[ -z $internal ]] || port int0 internal 'tag = 10'
    port carol "$fast" 'tag = 20'
    port trunk "$fast" 'trunks = [10, 20]'
} >"$work/left.toml"
{
    head_of right "$first_core"
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

