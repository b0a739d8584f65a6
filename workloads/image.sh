#!/usr/bin/env bash
# Build the image, without any network while it is built. Usage: image.sh [IMAGE [ARCHIVE]]
#
# Wheels are prepared first, those that requirements.lock names, with the interpreter of .venv/; then docker, buildah or podman
# builds from workloads/Containerfile. Where no registry answers, the base is a minimal Debian made by debootstrap (root;
# bookworm, Python 3.11), its signatures checked, with Debian's security updates. A CycloneDX bill of materials of the image
# is written beside the archive.
# What is prepared is kept by content under ${XDG_CACHE_HOME:-~/.cache}/sheetanchor/image; a base for MAX_AGE_DAYS.
#
#   BASE                       another base image, best as NAME@sha256:…
#   REFRESH=1                  fetch base and Debian's packages again, however recent they are
#   MAX_AGE_DAYS               age at which they are fetched again in any case (default 7)
#   SHEETANCHOR_DEBIAN_MIRROR  where debootstrap takes packages from
#   SHEETANCHOR_DEBIAN_SECURITY_MIRROR  where security updates come from; by default the mirror's name with -security
set -euo pipefail
cd "$(dirname "$0")/.."
image=${1:-localhost/sheetanchor:dev}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sheetanchor/image
archive=${2:-$cache/image.tar}
pip=".venv/bin/python -m pip" python=.venv/bin/python
mirror=${SHEETANCHOR_DEBIAN_MIRROR:-http://deb.debian.org/debian}
security=${SHEETANCHOR_DEBIAN_SECURITY_MIRROR:-${mirror%/}-security}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
max_age_days=${MAX_AGE_DAYS:-7}
started=$SECONDS
mkdir -p "$cache"

say() { printf '[image %3d s] %s\n' $((SECONDS - started)) "$*" >&2; }
fail() { say "$*"; exit 1; }

exec 9>"$cache/lock"
flock -w 1800 9 || fail "another build holds $cache/lock for half an hour: end it first"

engine=
if command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1; then engine=docker
elif command -v buildah >/dev/null && [ "$(id -u)" = 0 ]; then engine=buildah
elif command -v podman >/dev/null; then engine=podman
else fail "no docker engine, buildah or podman: install one of them (Debian: apt-get install buildah)"
fi
build() { # what all three understand
    case $engine in
    docker) docker build --network none "$@" ;;
    # Without a container runtime's namespaces buildah cannot take the network away by itself.
    buildah) unshare --net buildah bud --isolation chroot --network host --layers "$@" ;;
    podman) podman build --network none --layers "$@" ;;
    esac
}

version=$($python -c 'import sys; print(f"{sys.version_info[0]}.{sys.version_info[1]}")')
base=${BASE:-docker.io/library/python:$version-slim}

registry_answers() { timeout 5 bash -c '</dev/tcp/registry-1.docker.io/443' 2>/dev/null; }
fresh() { # FILE: whether it exists and is recent enough; a base that is kept for ever would never be updated
    [ "${REFRESH:-0}" != 1 ] && [ -s "$1" ] && [ -z "$(find "$1" -mmin "+$((max_age_days * 1440))" -print)" ]
}
here() { if [ $engine = docker ]; then docker image inspect "$1"; else "$engine" inspect --type image "$1"; fi >/dev/null 2>&1; }
digest_of() { # IMAGE: sha256:… by which its registry knows it; nothing for one that was made here
    case $engine in
    docker) docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" ;;
    podman) podman image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" ;;
    buildah) buildah inspect --type image --format '{{.FromImageDigest}}' "$1" ;;
    esac 2>/dev/null | grep -o 'sha256:[0-9a-f]\{64\}' | head -n 1
}

public_base() { # the base by its digest, so that what is built is what the bill of materials says
    local known=$cache/base-$(printf '%s' "$base" | sha256sum | cut -c1-12).digest name=${base##*/} repository=$base
    case $base in *@sha256:*) here "$base" || timeout 300 "$engine" pull -q "$base" >/dev/null 2>&1; return ;; esac
    if ! fresh "$known"; then
        # What no registry answers for is taken only if it was made here: an old copy of a public one is never fixed.
        timeout 300 "$engine" pull -q "$base" >/dev/null 2>&1 || { here "$base" && [ -z "$(digest_of "$base")" ]; } || return 1
        digest_of "$base" >"$known" || true
    fi
    case $name in *:*) repository=${base%:*} ;; esac
    [ ! -s "$known" ] || base=$repository@$(cat "$known")
}

debian_base() { # a minimal Debian with Python, from Debian's packages alone
    [ "$version" = 3.11 ] || fail "no registry answers, and Debian bookworm has Python 3.11, not $version: set PYTHON=python3.11 and run 'make clean setup', or name an image with BASE"
    local key packed root
    key=$(printf '%s' "bookworm python3 libstdc++6 2 $mirror $security" | sha256sum | cut -c1-12)
    packed=$cache/base-$key.tar
    if ! fresh "$packed"; then
        command -v debootstrap >/dev/null || fail "no registry answers and debootstrap is missing: apt-get install debootstrap"
        [ -s "$keyring" ] || fail "$keyring is missing, without which packages cannot be verified: apt-get install debian-archive-keyring"
        say "installing a Debian root for the base (a minute or two)"
        root=$(mktemp -d "$cache/root.XXXXXX")
        debootstrap --force-check-gpg "--keyring=$keyring" --variant=minbase --include=python3-minimal,python3,libstdc++6,ca-certificates \
            bookworm "$root" "$mirror" >"$cache/debootstrap.log" 2>&1 || {
            rm -rf "$root"; fail "debootstrap failed; the log is $cache/debootstrap.log; MAX_AGE_DAYS=… keeps an older base"; }
        # Updates since the release are in separate suites.
        printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" bookworm "$keyring" "$mirror" bookworm-updates \
            "$keyring" "$security" bookworm-security >"$root/etc/apt/sources.list"
        cp /etc/resolv.conf "$root/etc/resolv.conf"
        { chroot "$root" apt-get -q -o APT::Update::Error-Mode=any update &&
            DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -q -y dist-upgrade; } >>"$cache/debootstrap.log" 2>&1 || {
            rm -rf "$root"; fail "Debian's security suite cannot be reached; the log is $cache/debootstrap.log; MAX_AGE_DAYS=… keeps an older base"; }
        rm -rf "$root"/etc/resolv.conf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,locale,man,info} "$root"/var/log/*
        tar -C "$root" --numeric-owner -cf "$packed.new" .
        mv "$packed.new" "$packed"
        rm -rf "$root"
        sha256sum "$packed" | cut -c1-12 >"$packed.name"
    fi
    base=localhost/sheetanchor-base:$(cat "$packed.name")
    here "$base" && return
    say "making the base image"
    if [ $engine = docker ]; then docker import "$packed" "$base" >/dev/null
    elif [ $engine = podman ]; then podman import -q "$packed" "$base" >/dev/null
    else
        container=$(buildah from scratch)
        buildah add -q "$container" "$packed" / >/dev/null
        buildah commit -q --rm "$container" "$base" >/dev/null
    fi
}

if [ -n "${BASE:-}" ]; then public_base || fail "the base image $base can neither be found nor pulled"
elif ! { registry_answers && public_base; }; then base=; debian_base
fi
say "the base is $base"

context=$cache/context
mkdir -p "$context/own"
$python .ci/locked.py build sbom >"$cache/tools.txt" || fail "requirements.lock does not fit pyproject.toml"
$pip install -q --disable-pip-version-check --only-binary=:all: --require-hashes -r "$cache/tools.txt" || fail "the tools for the build cannot be downloaded"
$python .ci/locked.py image >"$cache/requirements.txt" || fail "requirements.lock does not fit pyproject.toml"
needs=$(cat "$cache/requirements.txt" <(echo "$version") | sha256sum | cut -c1-12)
if [ ! -e "$cache/needs-$needs/.complete" ]; then
    say "fetching the wheels of $(grep -c == "$cache/requirements.txt") packages"
    rm -rf "$cache/needs-$needs"
    $pip download -q --disable-pip-version-check --only-binary=:all: --require-hashes -d "$cache/needs-$needs" \
        -r "$cache/requirements.txt"
    touch "$cache/needs-$needs/.complete"
fi
rm -rf "$context/needs"
cp -rl "$cache/needs-$needs" "$context/needs"
rm -f "$context/needs/.complete"
cp "$cache/requirements.txt" "$context/needs/requirements.txt"

sources=$(find pyproject.toml README.md LICENSE decoder operator/sheetanchor_operator workloads/sheetanchor -type f \
    -not -path '*/__pycache__/*' -not -path '*/corpus/*' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-12)
if [ ! -e "$cache/own-$sources-$version.whl.name" ]; then
    say "building our own wheel"
    rm -rf "$context/own" && mkdir -p "$context/own"
    # A build folder of its own: whatever else is being built from this tree must not meet it.
    rm -rf "$cache/build"
    $pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation "--config-settings=build-dir=$cache/build" -w "$context/own" . >"$cache/wheel.log" 2>&1 || {
        tail -n 30 "$cache/wheel.log" >&2; fail "our own wheel could not be built; the log is $cache/wheel.log"; }
    rm -f "$cache"/own-*.whl.name
    (cd "$context/own" && ls ./*.whl) >"$cache/own-$sources-$version.whl.name"
fi
cp workloads/Containerfile "$context/Containerfile"

say "building $image with $engine"
revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
number=$($python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
created=$(date -u -d "@$(git log -1 --format=%ct 2>/dev/null || echo 0)" +%Y-%m-%dT%H:%M:%SZ)
build -f "$context/Containerfile" -t "$image" --build-arg "BASE=$base" --build-arg "BASE_NAME=$base" --build-arg "VERSION=$number" \
    --build-arg "REVISION=$revision" --build-arg "CREATED=$created" "$context" >"$cache/build.log" 2>&1 || {
    tail -n 30 "$cache/build.log" >&2; fail "the build failed; the log is $cache/build.log"; }

say "writing $archive"
rm -f "$archive.new"
case $engine in
docker) docker save -o "$archive.new" "$image" ;;
buildah) buildah push -q "$image" "docker-archive:$archive.new:$image" >/dev/null ;;
podman) podman save -q --format docker-archive -o "$archive.new" "$image" ;;
esac
mv "$archive.new" "$archive"
bill=${archive%.tar}.cdx.json
$python workloads/bill.py "$archive" >"$bill.new" || fail "what is in the image could not be listed"
mv "$bill.new" "$bill"
unpacked=$(stat -c %s "$archive")
packed=$(gzip -1 <"$archive" | wc -c)
say "done: $image, $((unpacked / 1000000)) MB unpacked, $((packed / 1000000)) MB compressed"
say "what is in it: $bill"
printf '%s\n' "$archive"
