#!/usr/bin/env bash
# Build the image, without any network while it is built. Usage: image.sh [IMAGE [ARCHIVE]]
#
# Wheels are prepared first, those that requirements.lock names, with the interpreter of .venv/; then docker, buildah or podman builds from workloads/Containerfile.
# Where no registry answers, the base is a minimal Debian made by debootstrap (root; bookworm, Python 3.11).
# What is prepared is kept by content under ${XDG_CACHE_HOME:-~/.cache}/sheetanchor/image.
#
#   BASE                     another base image
#   SHEETANCHOR_DEBIAN_MIRROR  where debootstrap takes packages from
set -euo pipefail
cd "$(dirname "$0")/.."
image=${1:-localhost/sheetanchor:dev}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sheetanchor/image
archive=${2:-$cache/image.tar}
pip=".venv/bin/python -m pip" python=.venv/bin/python
mirror=${SHEETANCHOR_DEBIAN_MIRROR:-http://deb.debian.org/debian}
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

have_base() {
    case $engine in
    docker) docker image inspect "$base" >/dev/null 2>&1 || timeout 60 docker pull -q "$base" >/dev/null 2>&1 ;;
    *) timeout 120 "$engine" pull -q "$base" >/dev/null 2>&1 ;;
    esac
}
registry_answers() { timeout 5 bash -c '</dev/tcp/registry-1.docker.io/443' 2>/dev/null; }

debian_base() { # a minimal Debian with Python, from Debian's packages alone
    [ "$version" = 3.11 ] || fail "no registry answers, and Debian bookworm has Python 3.11, not $version: set PYTHON=python3.11 and run 'make clean setup', or name an image with BASE"
    local key root
    key=$(printf '%s' "bookworm python3 libstdc++6 1" | sha256sum | cut -c1-12)
    base=localhost/sheetanchor-base:$key
    if ! { [ $engine = docker ] && docker image inspect "$base" || "$engine" inspect --type image "$base"; } >/dev/null 2>&1; then
        [ -s "$cache/base-$key.tar" ] || {
            command -v debootstrap >/dev/null || fail "no registry answers and debootstrap is missing: apt-get install debootstrap"
            say "installing a Debian root for the base (a minute the first time)"
            root=$(mktemp -d "$cache/root.XXXXXX")
            debootstrap --variant=minbase --include=python3-minimal,python3,libstdc++6,ca-certificates bookworm "$root" "$mirror" \
                >"$cache/debootstrap.log" 2>&1 || fail "debootstrap failed; the log is $cache/debootstrap.log"
            rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,locale,man,info} "$root"/var/log/*
            tar -C "$root" --numeric-owner -cf "$cache/base-$key.tar.new" .
            mv "$cache/base-$key.tar.new" "$cache/base-$key.tar"
            rm -rf "$root"
        }
        say "making the base image"
        if [ $engine = docker ]; then docker import "$cache/base-$key.tar" "$base" >/dev/null
        elif [ $engine = podman ]; then podman import -q "$cache/base-$key.tar" "$base" >/dev/null
        else
            container=$(buildah from scratch)
            buildah add -q "$container" "$cache/base-$key.tar" / >/dev/null
            buildah commit -q --rm "$container" "$base" >/dev/null
        fi
    fi
}

if [ -n "${BASE:-}" ]; then have_base || fail "the base image $base can neither be found nor pulled"
elif ! { registry_answers && have_base; }; then debian_base
fi

context=$cache/context
mkdir -p "$context/own"
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
build -f "$context/Containerfile" -t "$image" --build-arg "BASE=$base" --build-arg "VERSION=$number" \
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
unpacked=$(stat -c %s "$archive")
packed=$(gzip -1 <"$archive" | wc -c)
say "done: $image, $((unpacked / 1000000)) MB unpacked, $((packed / 1000000)) MB compressed"
printf '%s\n' "$archive"
