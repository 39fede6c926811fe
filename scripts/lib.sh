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
