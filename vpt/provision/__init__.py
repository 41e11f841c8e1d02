# SPDX-License-Identifier: BSD-2-Clause
"""Virtual machines, from an image to a shell in them, that live on when the command that made them has ended.

images    what they boot, and its cache; debian: a root disk by mmdebstrap
identity  keys, names and addresses of a guest; seed: the same for cloud-init
config    a machine as it is asked for, on the command line or in a topology
guests    making, starting, stopping and removing them, in a QEMU of their own or by libvirt
ready     waiting until one is up
ssh       commands, files, a terminal
"""
