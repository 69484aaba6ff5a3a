#!/usr/bin/env bash
# Puts Debian's prometheus and promtool into a folder, for the tests; installs nothing, and starts no service.
# Usage: install-prometheus.sh FOLDER
set -euo pipefail
folder=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/prometheus ./usr/bin/promtool
mv usr/bin/* "$folder"
