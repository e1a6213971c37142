#!/bin/sh
# Unpack Debian's Prometheus and PgBouncer, with the libraries that this system lacks, into a folder: nothing is installed
# and nothing started. Ends with 1, and says so in one line, where they cannot be had.
set -u

programs="prometheus pgbouncer"
folder=$1

give_up() {
	echo "$1: tests that need $programs run only where these are on PATH"
	exit 1
}

# What apt says is shown by nobody else: the tests name what is missing.
download() {
	apt-get -qq -o APT::Sandbox::User=root download "$@" >/dev/null 2>&1
}

missing_libraries() {
	for library in $(apt-cache depends pgbouncer | sed -n 's/^ *Depends: \(lib.*\)/\1/p'); do
		dpkg --status "$library" >/dev/null 2>&1 || echo "$library"
	done
}

for tool in apt-get apt-cache dpkg; do
	command -v $tool >/dev/null || give_up "There is no $tool"
done
rm -rf "$folder" && mkdir -p "$folder/packages" && cd "$folder/packages" || exit 1
echo "Unpacking $programs from Debian into $folder ..."
# shellcheck disable=SC2086 - words
if ! download $programs; then
	[ "$(id -u)" = 0 ] && apt-get -qq update >/dev/null 2>&1 && download $programs || give_up "apt-get download has failed"
fi
libraries=$(missing_libraries)
# shellcheck disable=SC2086 - words
[ -z "$libraries" ] || download $libraries || give_up "apt-get download has failed"
for package in *.deb; do
	dpkg -x "$package" .. || give_up "dpkg cannot unpack $package"
done
cd .. && rm -r packages
