#!/bin/busybox sh
# SPDX-License-Identifier: BSD-2-Clause
# First process of a guest: mounts, modules, then commands from a virtio-serial port for ever.
#
# A command arrives as one line "ID SECONDS COMMAND". The answer is its output (stdout and stderr, cut at 1 MiB), and then
# a line "< ID STATUS". Each fork costs milliseconds in an emulated machine, so there are few.

/bin/busybox mkdir -p /bin /sbin /proc /sys /dev /tmp /run/job
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ LANG=C
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
mkdir -p /dev/pts && mount -t devpts none /dev/pts
echo "guest: $(uname -r)" >/dev/ttyS0

while read -r module; do
	insmod "/lib/modules/$module" || echo "guest: insmod $module failed" >/dev/ttyS0
done </lib/modules/order
ip link set lo up

agent() {
	echo "READY"
	while read -r id seconds command; do
		timeout -s KILL "$seconds" sh -c "$command" </dev/null >/run/output 2>&1
		status=$?
		head -c 1048576 /run/output
		echo
		echo "< $id $status"
	done
}

echo "vpt-guest-ready" >/dev/ttyS0
while :; do
	# The driver learns of its ports a little after it was loaded. A port can be opened once only: for both directions.
	[ -e /dev/vport0p1 ] && (agent <>/dev/vport0p1 >&0)
	sleep 0.1
done
