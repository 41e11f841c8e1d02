#!/bin/busybox sh
# SPDX-License-Identifier: BSD-2-Clause
# First process of a guest with a root disk: modules, the disk, who it is (overlay/, put there by vpt), then the disk's init.

/bin/busybox mkdir -p /bin /proc /sys /dev /root-disk
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev

while read -r module; do
	insmod "/lib/modules/$module" || echo "guest: insmod $module failed" >/dev/ttyS0
done </lib/modules/order

waited=0
until [ -b /dev/vda ]; do
	[ $((waited += 1)) -lt 100 ] || { echo "guest: no root disk /dev/vda" >/dev/ttyS0; break; }
	sleep 0.1
done
mount -t ext4 /dev/vda /root-disk || { echo "guest: /dev/vda can't be mounted" >/dev/ttyS0; poweroff -f; }
[ ! -d /overlay ] || cp -a /overlay/. /root-disk/ || echo "guest: the root disk is full or read-only" >/dev/ttyS0
umount /proc /sys
exec switch_root /root-disk /sbin/init
