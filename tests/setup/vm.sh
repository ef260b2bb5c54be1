#!/usr/bin/env bash
# vm.sh DIRECTORY: makes DIRECTORY/kernel and DIRECTORY/initramfs, a virtual machine with the network of a whole Linux
# kernel: the peer of tests on machines whose own kernel lacks GRE, Geneve or 802.1Q. The kernel is Debian's for clouds,
# downloaded and unpacked but not installed; the programs in the initramfs are this machine's. Does nothing if both
# files are newer than this script; may run any number of times at once.
set -euo pipefail
script=$(readlink -f "${BASH_SOURCE[0]}")
mkdir -p "$1"
cd "$1"
exec 9>lock
flock 9
[[ kernel -nt $script && initramfs -nt $script ]] && exit

package=linux-image-cloud-amd64
# The kernel asks for most of them when a device of their kind is made.
modules=(
    virtio_pci virtio_net virtio_console af_packet
    ip_gre ip6_gre geneve vxlan 8021q bridge pktgen
    openvswitch vport-gre vport-geneve vport-vxlan crc32c_generic # conntrack wants a CRC-32C
)
programs=(dash ip bridge ss ethtool ping iperf3)

apt() { apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@" </dev/null >&2; }
# The package that PACKAGE, which is empty, stands for.
image() { apt-cache depends "$package" | awk '$1 == "Depends:" && /linux-image/ { print $2; exit }'; }
download() { local name; name=$(image) && [[ $name ]] && apt download "$name"; }

rm -rf work
mkdir -p work/deb work/root/{bin,dev,proc,sys,tmp,run}
cd work
# Lists that are missing or out of date are fetched, and it is tried again.
if ! (cd deb && { download 2>/dev/null || { apt update && download; }; }); then
    echo "vm: $package, which is Debian's for amd64, cannot be downloaded" >&2
    exit 1
fi
dpkg-deb -x deb/linux-image-*.deb image
rm -r deb
version=$(basename image/lib/modules/*)

depmod -b image "$version"
for module in "${modules[@]}"; do
    modprobe -d "$PWD/image" -S "$version" --show-depends "$module"
done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r file; do
    install -D -m 644 "$file" "root/${file#"$PWD/image/"}"
done
find root/lib/modules -name '*.xz' -exec unxz {} +
cp "image/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "root/lib/modules/$version"
depmod -b root "$version"

# A program and the libraries it loads, where it looks for them.
for program in "${programs[@]}"; do
    path=$(command -v "$program")
    install -D "$path" "root/bin/$program"
    for library in $(ldd "$path" | grep -o '/[^ ]*'); do
        install -D "$library" "root$library"
    done
done
install -D "$(command -v busybox)" root/bin/busybox
ln -s bin root/sbin
ln -s dash root/bin/sh # busybox's prefers its own ip and ping

# A line from the host is a command; its output goes back, then an RS character and its status. When the host hangs up,
# the machine ends.
cat >root/init <<'END'
#!/bin/sh
/bin/busybox --install -s /bin 2>/dev/null
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
modprobe -a virtio_pci virtio_net virtio_console
ip link set lo up
until [ -c /dev/vport0p1 ]; do usleep 10000; done
exec 3<>/dev/vport0p1
mkfifo /run/lines
(cat <&3 >/run/lines; poweroff -f) &
printf '\036%d\n' 0 >&3
while read -r line; do
    (eval "$line") </dev/null >&3 2>&1 3>&-
    printf '\036%d\n' $? >&3
done </run/lines
wait
END
chmod 755 root/init
(cd root && find . | cpio --quiet -o -H newc -R 0:0) >initramfs
cp image/boot/vmlinuz-* kernel
mv kernel initramfs ..
cd ..
rm -r work
