# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# setup.sh - what ci/quickstart and ci/test share: Debian packages, virtual environment, build
#
# Sourced with $top set to the checkout. Everything here writes to stderr, so that stdout stays the caller's. Each step
# looks first whether there is anything to do.

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
die() { printf 'ci: %s\n' "$1" >&2; [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2; exit 3; }

# packages GROUP...: names of ci/packages in those groups
packages() {
	local group
	for group; do
		sed -n "s/^$group  *\([^ #]*\).*/\1/p" "$top/ci/packages"
	done
}

# setup_packages GROUP...: list what is missing, then install it
setup_packages() {
	local package want=() as_root=()
	command -v dpkg-query >/dev/null || die "this is not Debian" "install what ci/packages lists, then: pip install ."
	for package in $(packages "$@"); do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || want+=("$package")
	done
	[ ${#want[@]} -gt 0 ] || return 0

	say "missing from Debian: ${want[*]}"
	if [ "$(id -u)" != 0 ]; then
		command -v sudo >/dev/null || die "neither root nor sudo" "as root: apt-get install ${want[*]}"
		as_root=(sudo)
	fi
	as_root+=(env DEBIAN_FRONTEND=noninteractive)
	"${as_root[@]}" apt-get update -q >&2 || die "apt-get update failed"
	"${as_root[@]}" apt-get install -q -y --no-install-recommends "${want[@]}" >&2 ||
		die "apt-get install failed" "apt-get install ${want[*]}"
}

# find_python: a Python of 3.11 or later that can make a virtual environment and has headers to build against
find_python() {
	local python
	for python in python3 /usr/bin/python3; do
		"$python" - 2>/dev/null <<-'END' && return
			import ensurepip, os, sys, sysconfig, venv
			header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
			if sys.version_info < (3, 11) or not os.path.exists(header):
			    sys.exit(1)
			# In an active environment: the Python that it was made from, which it may know by another of its names.
			print(os.path.realpath(sys._base_executable))
		END
	done
	die "no Python 3.11 with venv and headers" "apt-get install python3-venv python3-dev"
}

# setup_venv: .venv with all that pyproject.toml asks for, and vpt itself, editable. Again only if an input changed.
setup_venv() {
	local python stamp tools extras=test,dev,docs,guest
	python=$(find_python) || exit
	# libvirt's binding has to be built: where its headers are missing, vpt does without, and says so when asked.
	! pkg-config --exists libvirt 2>/dev/null || extras+=,libvirt
	stamp=$(
		{
			echo "$top $python $extras"
			"$python" -VV
			sed '/^\[tool\.pytest/,$d' "$top/pyproject.toml" # what follows configures tools, and installs nothing
			cat "$top/ci/setup.sh"
		} | sha256sum
	)
	export PATH=$venv/bin:$PATH
	if [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$stamp" ]; then
		say "virtual environment: .venv ($("$python" -V))"
		rm -rf "$top/build/venv"
		"$python" -m venv --clear "$venv"
		# The build tools live in the environment, because an editable install builds again when a source changed.
		mapfile -t tools < <("$venv/bin/python" -c '
import sys, tomllib
with open(sys.argv[1], "rb") as f:
    print(*tomllib.load(f)["build-system"]["requires"], sep="\n")' "$top/pyproject.toml")
		tools+=("setuptools>=70.1") # libvirt-python is source only, and is built in here too
		"$venv/bin/pip" install -q --disable-pip-version-check "${tools[@]}" >&2
		"$venv/bin/pip" install -q --disable-pip-version-check --no-build-isolation \
			--config-settings=build-dir=build/venv --config-settings=setup-args=-Dwerror=true -e "$top[$extras]" >&2
		echo "$stamp" >"$venv/.stamp"
	fi
	# Python would do it when it first imports the package; here an error can be read.
	build "$top/build/venv"
}

# build DIR: bring a build directory up to date; show what it says only if it fails
build() {
	ninja -C "$1" >"$1/build.log" 2>&1 || { cat "$1/build.log" >&2; return 1; }
}

venv=$top/.venv
