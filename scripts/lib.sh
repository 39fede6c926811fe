# What the scripts beside this file share. They source it first; it is not run by itself.
# shellcheck shell=bash

set -euo pipefail

# Every script works from the root of the project, wherever it was called from.
unset CDPATH
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# cargo install puts its tools here, and not every shell looks there.
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# Progress goes to stderr, so that stdout is left for what a script is asked for.
say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 1
}

# need_apt PACKAGE...: installs what is missing of these Debian packages.
need_apt() {
    local package missing=() root=()
    if ! command -v apt-get >/dev/null; then
        say "error: this machine has no apt-get: please install by hand what Debian calls: $*"
        return 1
    fi
    for package in "$@"; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        return 0
    fi
    if ((EUID != 0)); then
        root=(sudo)
    fi
    say "Installing with apt-get: ${missing[*]}"
    # A fresh container has no index of packages. A stale one may do, so a failure here is not the end.
    "${root[@]}" apt-get update -qq >&2 || say "warning: apt-get update failed"
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# without_services COMMAND...: what it installs is not started, as Debian would do at once. The
# servers of a test are started by the test, on ports of its own.
without_services() (
    policy=/usr/sbin/policy-rc.d root=()
    if [[ ! -e $policy ]]; then
        if ((EUID != 0)); then
            root=(sudo)
        fi
        trap '"${root[@]}" rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod 755 "$policy"
    fi
    "$@"
)

# not_at_boot SERVICE...: nor is it started with the machine.
not_at_boot() {
    local root=()
    if ((EUID != 0)); then
        root=(sudo)
    fi
    if command -v systemctl >/dev/null; then
        "${root[@]}" systemctl disable --quiet "$@" >&2 || say "warning: could not disable: $*"
    fi
}

# Real servers, for tests of what happens to a cache when these die. See rig.rs in terrace-test.
need_redis() {
    if ! command -v redis-server >/dev/null || ! command -v redis-cli >/dev/null; then
        without_services need_apt redis-server redis-sentinel redis-tools ||
            die "tests start real servers: please install redis-server and redis-cli by hand"
        not_at_boot redis-server redis-sentinel
    fi
    # Certificates for servers that speak TLS are made with it.
    if ! command -v openssl >/dev/null; then
        need_apt openssl || die "tests make certificates: please install openssl by hand"
    fi
}

# With it tests see what a process writes and syncs, and make that fail. See acknowledged.rs.
need_strace() {
    command -v strace >/dev/null || need_apt strace ||
        die "tests watch and disturb processes: please install strace by hand"
}

# need_valkey: fails where it cannot be had, and says so: not every release of Debian has it, and
# bookworm has it among its backports alone. Tests with it have "valkey" in their names.
need_valkey() {
    if command -v valkey-server >/dev/null; then
        return 0
    fi
    if [[ $(apt-cache policy valkey-server 2>/dev/null) == *"Candidate: "[0-9]* ]] &&
        without_services need_apt valkey-server || without_services from_backports valkey-server; then
        not_at_boot valkey-server
        return 0
    fi
    say "warning: valkey-server could not be installed: what is tested with it is left out"
    return 1
}

# from_backports PACKAGE: from where this machine gets its other packages, for this once.
from_backports() (
    if ! command -v apt-get >/dev/null; then
        say "error: this machine has no apt-get: please install by hand what Debian calls: $1"
        return 1
    fi
    root=() release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    if ((EUID != 0)); then
        root=(sudo)
    fi
    work=$(mktemp -d)
    # What apt downloads belongs to root.
    trap '"${root[@]}" rm -rf "$work"' EXIT
    chmod 755 "$work"
    mkdir -p "$work/sources" "$work/lists/partial"
    cp /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list "$work/sources" 2>/dev/null || true
    if [[ -e /etc/apt/sources.list ]]; then
        cp /etc/apt/sources.list "$work/sources/machine.list"
    fi
    for file in "$work"/sources/*.sources; do
        [[ -e $file ]] || continue
        awk -v release="$release" -v RS= -v ORS='\n\n' '
            $0 ~ "(^|\n)Suites:[^\n]* " release "([ \n]|$)" {
                sub(/Suites:[^\n]*/, "Suites: " release "-backports")
                print
            }' "$file" >"${file%.sources}-backports.sources"
    done
    for file in "$work"/sources/*.list; do
        [[ -e $file ]] || continue
        sed -n "s/^\(deb .*\) $release /\1 $release-backports /p" "$file" >"${file%.list}-backports.list"
    done
    options=(-o "Dir::Etc::sourceparts=$work/sources" -o Dir::Etc::sourcelist=/dev/null
        -o "Dir::State::lists=$work/lists")
    say "Installing from $release-backports with apt-get: $1"
    "${root[@]}" apt-get "${options[@]}" update -qq >&2 || return 1
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get "${options[@]}" install -y -qq --no-install-recommends "$1" >&2
)

need_c_compiler() {
    if ! command -v cc >/dev/null; then
        need_apt gcc libc6-dev || die "a C compiler is needed: SQLite and zstd are built from source"
    fi
}

# need_rust_component SUBCOMMAND COMPONENT: a minimal toolchain comes without clippy and rustfmt.
need_rust_component() {
    command -v cargo >/dev/null || die "cargo was not found: please install Rust with rustup first"
    if ! cargo "$1" --version >/dev/null 2>&1; then
        say "Adding the Rust component $2"
        rustup component add "$2" >&2 || die "please add the Rust component $2 by hand"
    fi
}

# need_cargo_tool BINARY CRATE [VERSION]: builds a cargo tool that is missing, or has not this
# version, once for this machine.
need_cargo_tool() {
    local start=$SECONDS crate=$2${3:+@$3}
    command -v cargo >/dev/null || die "cargo was not found: please install Rust with rustup first"
    if command -v "$1" >/dev/null && [[ -z ${3-} || $("$1" --version) == *" $3" ]]; then
        return 0
    fi
    need_c_compiler
    say "Installing $crate with cargo: three to six minutes on two cores, this once"
    # With a target folder of the project in the environment the tool would be built into it.
    env -u CARGO_TARGET_DIR cargo install --locked "$crate" >&2 ||
        die "cargo install --locked $crate failed"
    say "Installed $crate in $((SECONDS - start)) s"
}
