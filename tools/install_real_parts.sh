#!/usr/bin/env bash
# Installs the real programs that tests talk to: Consul (service discovery) and buf (proto lint, gRPC calls).
#
# For Debian 12 (bookworm), as root. Idempotent: quick when both are there. Needs an apt mirror and the npm registry that
# this machine is configured for; no host is named here.
#
# bookworm has no Consul, bullseye's main archive has. bullseye never enters the machine's own apt sources: its index lives
# in a temporary folder for as long as this script runs, and exactly one .deb is taken from it, checked against Debian's key.
set -euo pipefail

readonly BUF_VERSION="1.75.0"
readonly OLD_SUITE="bullseye"
readonly KEYRING="/usr/share/keyrings/debian-archive-keyring.gpg"
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly ROOT TOOLS="${ROOT}/build/tools"
export DEBIAN_FRONTEND=noninteractive

say() { printf 'real parts: %s\n' "$*"; }
die() { printf 'real parts: %s\n' "$*" >&2; exit 1; }

scratch=""
trap '[[ -z "${scratch}" ]] || rm -rf "${scratch}"' EXIT

refreshed=""
refresh_index() { # a bare machine has no package lists yet
    if [[ -z "${refreshed}" ]]; then
        apt-get update -qq
        refreshed=1
    fi
}

need_root() { [[ "$(id -u)" -eq 0 ]] || die "$1 is missing and only root can install it"; }

# The archive this machine takes its own Debian release from, asked of apt itself: works for .list and .sources alike.
debian_mirror() {
    local uri suite
    while IFS='|' read -r uri suite; do
        case "${suite}" in
            *-security | *-backports | *-updates) ;;
            *) printf '%s\n' "${uri}"; return 0 ;;
        esac
    done < <(apt-get indextargets --format '$(REPO_URI)|$(RELEASE)' 'Created-By: Packages' 'Origin: Debian' 'Component: main')
    return 1
}

install_consul() {
    if command -v consul >/dev/null; then
        say "consul is there: $(consul version | head -n 1)"
        return
    fi
    need_root consul
    [[ -r "${KEYRING}" ]] || die "${KEYRING} is missing: install debian-archive-keyring"
    refresh_index
    local mirror
    mirror="$(debian_mirror)" || die "no Debian archive found in this machine's apt sources"
    scratch="$(mktemp -d)"
    chmod 755 "${scratch}" # apt downloads as its own user
    mkdir -p "${scratch}"/{lists,cache/archives}/partial "${scratch}/deb"
    chown -R _apt "${scratch}/deb" "${scratch}/lists" "${scratch}/cache" 2>/dev/null || true
    printf 'deb [signed-by=%s] %s %s main\n' "${KEYRING}" "${mirror}" "${OLD_SUITE}" >"${scratch}/sources.list"
    local apt_apart=(
        -o "Dir::Etc::sourcelist=${scratch}/sources.list" -o "Dir::Etc::sourceparts=-"
        -o "Dir::State::lists=${scratch}/lists" -o "Dir::Cache=${scratch}/cache"
    )
    say "fetching consul from ${OLD_SUITE} of this machine's Debian mirror"
    apt-get "${apt_apart[@]}" update -qq
    (cd "${scratch}/deb" && apt-get "${apt_apart[@]}" download -qq consul)
    # Dependencies come from this machine's own release: the temporary source is not in force any more.
    apt-get install -y -qq --no-install-recommends "${scratch}"/deb/consul_*.deb >/dev/null
    say "installed $(consul version | head -n 1)"
}

install_buf() {
    local buf="${TOOLS}/node_modules/.bin/buf"
    if [[ -x "${buf}" && "$("${buf}" --version 2>/dev/null)" == "${BUF_VERSION}" ]]; then
        say "buf ${BUF_VERSION} is there"
        return
    fi
    if ! command -v npm >/dev/null; then
        need_root npm
        refresh_index
        say "installing npm"
        apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null
    fi
    mkdir -p "${TOOLS}"
    say "installing buf ${BUF_VERSION} into ${TOOLS#"${ROOT}"/}"
    npm install --prefix "${TOOLS}" --no-save --no-package-lock --no-audit --no-fund --loglevel=error "@bufbuild/buf@${BUF_VERSION}" >/dev/null
    [[ "$("${buf}" --version)" == "${BUF_VERSION}" ]] || die "buf does not run after its installation"
    say "installed buf ${BUF_VERSION}"
}

install_consul
install_buf
