#!/bin/busybox sh
# SPDX-License-Identifier: BSD-2-Clause
# First process of a guest: mounts, modules, then commands from ttyS1 for ever.
#
# A command arrives as one line "ID SECONDS BASE64". The answer is "> ID STATUS", its output (stdout and stderr) in
# base64, and "< ID". Output beyond 1 MiB is cut. ttyS0 stays the kernel's.

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
	stty -F /dev/ttyS1 raw -echo
	exec </dev/ttyS1 >/dev/ttyS1
	echo "READY"
	while read -r id seconds command; do
		echo "$command" | base64 -d >/run/command
		timeout -s KILL "$seconds" sh /run/command </dev/null >/run/output 2>&1
		status=$?
		echo "> $id $status"
		head -c 1048576 /run/output | base64
		echo "< $id"
	done
}

echo "vpt-guest-ready" >/dev/ttyS0
while :; do
	agent
	echo "guest: command channel ended" >/dev/ttyS0
	sleep 1
done
