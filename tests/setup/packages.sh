#!/usr/bin/env bash
# packages.sh PURPOSE...: installs the Debian packages of packages.txt that PURPOSE (build, demo, test, bench) needs and
# this machine lacks. Says which and why first. Asks the network for nothing if none is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

installed() { [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

if ! command -v dpkg-query >/dev/null; then
    echo "packages: this is no Debian or Ubuntu; the packages in tests/setup/packages.txt are yours to install" >&2
    exit 0
fi

missing=()
while read -r name purpose why; do
    [[ -z $name || $name == \#* || " $* " != *" $purpose "* ]] && continue
    installed "$name" && continue
    [[ " ${missing[*]-} " == *" $name "* ]] && continue
    (( ${#missing[@]} )) || echo "These system packages are missing:"
    printf '  %-20s %s\n' "$name" "$why"
    missing+=("$name")
done < "$here/packages.txt"
(( ${#missing[@]} )) || exit 0

as_root=()
if (( EUID != 0 )); then
    if command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
        as_root=(sudo)
    else
        echo "packages: only root may install them; run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
fi

echo "Installing them with apt-get."
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@" </dev/null; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt update && apt install --yes --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "packages: apt-get failed, see above" >&2
    exit 1
fi
