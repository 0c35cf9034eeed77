#!/usr/bin/env bash
# Write .env for `docker compose`: random secrets, and a user that may write to runs/. An .env that is there stays.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -e .env ]; then
  echo "env: found .env, kept: delete it for new secrets" >&2
  exit 0
fi
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
# Containers write runs/ as whoever owns it here, and never as root.
user=$(id -u) group=$(id -g)
[ "$user" != 0 ] || user=10001 group=10001
mkdir -p runs
[ "$(id -u)" != 0 ] || chown "$user:$group" runs
(
  umask 077
  sed -e "s/^TEMPSAMP_TOKEN=$/&$(secret)/" -e "s/^TEMPSAMP_REDIS_PASSWORD=$/&$(secret)/" \
    -e "s/^#TEMPSAMP_GRAFANA_PASSWORD=$/TEMPSAMP_GRAFANA_PASSWORD=$(secret)/" \
    -e "s/^#TEMPSAMP_USER=.*$/TEMPSAMP_USER=$user:$group/" .env.example >.env
)
echo "env: .env written; docker compose up trains the demo"
