#!/bin/sh
# Installs NVIDIA's perf_analyzer into a virtual environment: scripts/install-perf-analyzer.sh VENV
#
# The binary travels in tritonclient's wheels up to 2.60.0; 2.50.0 is the last that runs on glibc 2.36. It lies
# beside the environment's own, newer tritonclient, with the two libraries that it asks for under plain names.
set -eu
venv=$(cd "$1" && pwd)
home=$venv/perf_analyzer
"$venv/bin/pip" install --quiet --no-deps --upgrade --target "$home" tritonclient==2.50.0
libraries=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia_pytriton.libs
mkdir -p "$home/lib"
ln -sf "$libraries"/libb64-*.so.0d "$home/lib/libb64.so.0d"
ln -sf "$libraries"/libcudart-*.so.12* "$home/lib/libcudart.so.12"
cat > "$venv/bin/perf_analyzer" <<EOF
#!/bin/sh
LD_LIBRARY_PATH="$home/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" exec "$home/bin/perf_analyzer" "\$@"
EOF
chmod +x "$venv/bin/perf_analyzer" "$home/bin/perf_analyzer"
