#!/bin/sh
# Runs in the final stage of an image, as root: create the runtime user and its folder for models.
#
#   base.sh [--strip]     with --strip, also remove the installers of the base image
set -eu

if [ "${1:-}" = --strip ]; then
  for packages in /usr/local/lib/python3*/site-packages /usr/lib/python3/dist-packages; do
    for name in pip setuptools wheel pkg_resources _distutils_hack; do
      rm -rf "${packages:?}/$name" "${packages:?}/$name"-*
    done
    rm -f "$packages/distutils-precedence.pth"
  done
  rm -rf /usr/local/bin/pip* /usr/bin/pip* /usr/local/bin/wheel /usr/bin/wheel /usr/share/python-wheels \
    /usr/local/lib/python3*/ensurepip /usr/lib/python3*/ensurepip /etc/pip.conf \
    /var/lib/apt/lists/* /var/cache/apt/* /root/.cache
fi

# Some libraries need the user's name and home, so a bare uid is not enough.
groupadd --gid 10001 cluster
useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin --no-log-init cluster
# Compose files and health checks say `python`; a base may have only `python3`.
command -v python >/dev/null || ln -s "$(command -v python3)" /usr/local/bin/python
install -d -o 10001 -g 10001 /models
