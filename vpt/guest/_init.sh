#!/bin/busybox sh
# SPDX-License-Identifier: BSD-2-Clause
# First process of a guest: mounts, modules, then commands from a virtio-serial port for ever.
#
# A command arrives as one line "ID SECONDS COMMAND". The answer is its output (stdout and stderr, cut at 1 MiB), and then
# a line "< ID STATUS". Each fork costs milliseconds in an emulated machine, so there are few.
#
# A guest that was given an identity (a second archive behind this one: host key, /etc/vpt/net) is reached by ssh instead.

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

# interface_of MAC: its name, once the driver has it
interface_of() {
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		for address in /sys/class/net/*/address; do
			[ "$(cat "$address")" = "$1" ] || continue
			address=${address%/address}
			echo "${address##*/}"
			return
		done
		sleep 0.2
	done
	echo "guest: no interface with address $1" >/dev/ttyS0
	return 1
}

# Lines of /etc/vpt/net: MAC NAME GATEWAY|- [ADDRESS/PREFIX...]
network() {
	while read -r mac name gateway addresses; do
		device=$(interface_of "$mac") || continue
		ip link set "$device" name "$name"
		for address in $addresses; do
			ip addr add "$address" dev "$name"
		done
		ip link set "$name" up
		[ "$gateway" = - ] || ip route add default via "$gateway" dev "$name"
	done
}

if [ -e /etc/vpt/net ]; then
	hostname -F /etc/hostname
	# What is copied here must not eat the memory that the ssh server needs: full is an error, no memory is its end.
	mount -o remount,size=25% /tmp
	network </etc/vpt/net 2>/dev/ttyS0
	# No passwords: who has the key that came with the identity gets in.
	/usr/sbin/dropbear -s -r /etc/dropbear/host_key 2>/dev/ttyS0
	echo "vpt-guest-ready" >/dev/ttyS0
	while :; do sleep 3600; done
fi

echo "vpt-guest-ready" >/dev/ttyS0
while :; do
	# The driver learns of its ports a little after it was loaded. A port can be opened once only: for both directions.
	[ -e /dev/vport0p1 ] && (agent <>/dev/vport0p1 >&0)
	sleep 0.1
done
