#!/usr/bin/env bash
# Boots a Debian kernel under qemu, in software, with the datapath's tests in its initramfs, and runs some of them:
#   deploy/kernel/boot.sh linux-image-6.1.0-56-cloud-amd64 FILTER …
# or, with `check` for a filter, `sluice-proxy check`; APPEND='ipv6.disable=1' is told to the kernel.
# `cargo xtask kernel` calls it, with what it needs installed.
# Shows that the programs load there, attach by clsact where the kernel has no tcx links, deny one packet and allow
# another. Takes minutes; not part of continuous integration. Needs qemu-system-x86, cpio, apt and what the tests need;
# installs nothing: kernel and busybox are downloaded and unpacked into $WORK.
set -euo pipefail
package=${1:?the name of a kernel package, as linux-image-6.1.0-56-cloud-amd64}; shift
filters=("${@:?the tests to run, by parts of their names}")
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${WORK:-$(mktemp -d)}; mkdir -p "$work"; cd "$work"
# How long all of it may take: software emulation is some twenty times slower.
limit=${LIMIT:-900}

[ -d kernel ] || { apt-get -q download "$package" && dpkg -x "$package"_*.deb kernel; }
[ -d busybox ] || { apt-get -q download busybox-static && dpkg -x busybox-static_*.deb busybox; }
tests=$(cd "$root" && cargo test -q -p sluice-tests --test datapath --no-run --message-format=json 2>/dev/null |
  grep -o '"executable":"[^"]*/datapath-[^"]*"' | tail -1 | cut -d'"' -f4)

proxy=$(cd "$root" && cargo build -q -p sluice-proxy --message-format=json 2>/dev/null |
  grep -o '"executable":"[^"]*/sluice-proxy"' | tail -1 | cut -d'"' -f4)

rm -rf tree; mkdir -p tree/{bin,sbin,lib,proc,sys,dev,run,tmp,etc,modules}
cp busybox/bin/busybox tree/bin/
# Without the lines of the source it is a third as large.
objcopy --strip-debug "$tests" tree/bin/datapath
objcopy --strip-debug "$proxy" tree/bin/sluice-proxy
for tool in ip tc nsenter nft; do cp "$(command -v $tool)" tree/bin/; done
ldd tree/bin/{datapath,sluice-proxy,ip,tc,nsenter,nft} | grep -o '/[^ ]*\.so[^ ]*' | sort -u |
  while read -r library; do mkdir -p "tree$(dirname "$library")"; cp -L "$library" "tree$library"; done
# In the order that they need each other.
modules=(llc stp bridge veth sch_ingress cls_bpf)
modules+=(libcrc32c nf_defrag_ipv4 nf_defrag_ipv6 nf_conntrack nfnetlink nf_tables nft_ct)
for module in "${modules[@]}"; do
  file=$(find kernel/lib/modules -name "$module.ko*" | head -1)
  case $file in
    *.xz) xz -dc "$file" > "tree/modules/$module.ko" ;;
    *.zst) zstd -qdc "$file" > "tree/modules/$module.ko" ;;
    ?*) cp "$file" tree/modules/ ;;
  esac
done
cat > tree/init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
ip link set lo up
for module in MODULES; do insmod /modules/$module.ko; done
echo "--- $(uname -sr)"
while read -r filter; do
  case $filter in
    check) echo "--- check"; sysctl -qw net.ipv4.ip_forward=1; sluice-proxy check ;;
    *) echo "--- datapath $filter"; datapath --color never --test-threads 1 "$filter" ;;
  esac
  echo "--- exit code $?"
done < /etc/filters
poweroff -f
INIT
sed -i "s/MODULES/${modules[*]}/" tree/init; chmod +x tree/init
printf '%s\n' "${filters[@]}" > tree/etc/filters
(cd tree && find . | cpio -o -H newc --quiet | gzip -1) > initramfs
timeout "$limit" qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 2048 -nographic -no-reboot \
  -kernel kernel/boot/vmlinuz-* -initrd initramfs -append "console=ttyS0 quiet panic=-1 ${APPEND:-}" | tee output
! grep -q -e 'exit code [^0]' -e 'Kernel panic' output
