#!/usr/bin/env bash
# Installs the real programs that tests talk to: Consul (service discovery), PostgreSQL (the registry's metadata), skopeo (reads
# OCI layouts), buf (proto lint, gRPC calls), NVIDIA's clients of the Open Inference Protocol (tritonclient, perf_analyzer) and
# MLflow's server, unmodified.
#
# For Debian 12 (bookworm), as root. Idempotent: quick when all are there. Needs an apt mirror, the npm registry and the Python
# index that this machine is configured for; no host is named here.
#
# bookworm has no Consul, bullseye's main archive has. bullseye never enters the machine's own apt sources: its index lives
# in a temporary folder for as long as this script runs, and exactly one .deb is taken from it, checked against Debian's key.
set -euo pipefail

readonly BUF_VERSION="1.75.0"
readonly TRITONCLIENT_VERSION="2.73.0"
# The last releases of tritonclient carry no perf_analyzer any more; this one's is linked against two libraries beside Debian's.
readonly PERF_ANALYZER_FROM="2.41.1"
readonly CUDA_RUNTIME_VERSION="12.9.79"
readonly MLFLOW_VERSION="3.17.2"
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

newest_initdb() { compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1 || true; }

# Tests start clusters of their own; the package must not make one that runs beside them.
install_postgres() {
    local initdb
    initdb="$(newest_initdb)"
    if [[ -n "${initdb}" ]]; then
        say "postgresql is there: $("${initdb}" --version)"
        return
    fi
    need_root postgresql
    refresh_index
    say "installing postgresql"
    apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null
    mkdir -p /etc/postgresql-common/createcluster.d
    printf 'create_main_cluster = false\nstart_conf = disabled\n' >/etc/postgresql-common/createcluster.d/splitmesh.conf
    apt-get install -y -qq --no-install-recommends postgresql >/dev/null
    initdb="$(newest_initdb)"
    [[ -n "${initdb}" ]] || die "initdb is missing after the installation of postgresql"
    say "installed $("${initdb}" --version)"
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

# In an environment of its own: it wants an older protobuf than the product does.
install_tritonclient() {
    local folder="${TOOLS}/tritonclient"
    if [[ "$("${folder}/bin/python" -c 'import importlib.metadata as m; print(m.version("tritonclient"))' 2>/dev/null)" == "${TRITONCLIENT_VERSION}" ]]; then
        say "tritonclient ${TRITONCLIENT_VERSION} is there"
        return
    fi
    say "installing tritonclient ${TRITONCLIENT_VERSION} into ${folder#"${ROOT}"/}"
    python3 -c 'import venv, ensurepip' 2>/dev/null || die "python3-venv is missing: apt-get install python3-venv"
    rm -rf "${folder}"
    python3 -m venv "${folder}"
    "${folder}/bin/python" -m pip --disable-pip-version-check install -qq "tritonclient[grpc]==${TRITONCLIENT_VERSION}"
    "${folder}/bin/python" -c 'import tritonclient.grpc.aio' || die "tritonclient cannot be imported after its installation"
    say "installed tritonclient ${TRITONCLIENT_VERSION}"
}

# A binary for 64-bit PCs; elsewhere its tests are skipped.
install_perf_analyzer() {
    local folder="${TOOLS}/perf_analyzer"
    if [[ -x "${folder}/perf_analyzer" ]] && "${folder}/perf_analyzer" --version >/dev/null 2>&1; then
        say "perf_analyzer is there: $("${folder}/perf_analyzer" --version 2>&1)"
        return
    fi
    if [[ "$(uname -m)" != x86_64 ]]; then
        say "perf_analyzer has no binary for $(uname -m)"
        return
    fi
    say "installing perf_analyzer into ${folder#"${ROOT}"/}"
    rm -rf "${folder}"
    mkdir -p "${folder}/deb"
    "${TOOLS}/tritonclient/bin/python" -m pip --disable-pip-version-check install -qq --no-deps --target "${folder}/wheels" \
        "tritonclient==${PERF_ANALYZER_FROM}" "nvidia-cuda-runtime-cu12==${CUDA_RUNTIME_VERSION}"
    (cd "${folder}/deb" && { apt-get download -qq libb64-0d 2>/dev/null || { refresh_index; apt-get download -qq libb64-0d; }; })
    dpkg-deb --extract "${folder}"/deb/libb64-0d_*.deb "${folder}/deb"
    cat >"${folder}/perf_analyzer" <<'END'
#!/usr/bin/env bash
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export LD_LIBRARY_PATH="${here}/wheels/nvidia/cuda_runtime/lib:${here}/deb/usr/lib/x86_64-linux-gnu"
exec "${here}/wheels/bin/perf_analyzer" "$@"
END
    chmod +x "${folder}/perf_analyzer" "${folder}/wheels/bin/perf_analyzer"
    rm "${folder}/wheels/bin/perf_client" # the same once more
    say "installed $("${folder}/perf_analyzer" --version 2>&1)"
}

# In an environment of its own: its server needs hundreds of megabytes that the product does not.
install_mlflow() {
    local folder="${TOOLS}/mlflow"
    if [[ "$("${folder}/bin/python" -c 'import importlib.metadata as m; print(m.version("mlflow"))' 2>/dev/null)" == "${MLFLOW_VERSION}" ]]; then
        say "mlflow ${MLFLOW_VERSION} is there"
        return
    fi
    say "installing mlflow ${MLFLOW_VERSION} into ${folder#"${ROOT}"/}"
    rm -rf "${folder}"
    python3 -m venv "${folder}"
    "${folder}/bin/python" -m pip --disable-pip-version-check install -qq "mlflow==${MLFLOW_VERSION}"
    [[ -x "${folder}/bin/mlflow" ]] || die "mlflow is missing after its installation"
    say "installed mlflow ${MLFLOW_VERSION}"
}

install_skopeo() {
    if command -v skopeo >/dev/null; then
        say "skopeo is there: $(skopeo --version)"
        return
    fi
    need_root skopeo
    refresh_index
    say "installing skopeo"
    apt-get install -y -qq --no-install-recommends skopeo >/dev/null
    say "installed $(skopeo --version)"
}

install_consul
install_postgres
install_skopeo
install_buf
install_tritonclient
install_perf_analyzer
install_mlflow
