# SPDX-License-Identifier: Apache-2.0
#
# Shell functions that demo.sh and test.sh share: Debian packages, and how many jobs fit this machine. Source it.

# install_missing PACKAGE...: installs those that are not there yet. Asks nothing; as root, or through sudo.
install_missing() {
  if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg-query >/dev/null 2>&1; then
    echo "==> no apt-get here; these Debian packages, or their like, must be installed: $*"
    return 0
  fi
  missing=""
  for package in "$@"; do
    case "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" in
      *" installed") ;;
      *) missing="$missing $package" ;;
    esac
  done
  if [ -z "$missing" ]; then
    echo "==> every package needed is installed"
    return 0
  fi
  as_root="env"
  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
      echo "==> not root and no sudo; install these packages first:$missing" >&2
      return 1
    fi
    as_root="sudo env"
    if [ ! -t 0 ]; then as_root="sudo -n env"; fi
  fi
  echo "==> installing with apt-get:$missing"
  # Lists that are there may be good enough; if not, they are brought up to date once.
  apt_lists=$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' 2>/dev/null | head -n 1)
  apt_install="$as_root DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends"
  if [ -z "$apt_lists" ] || ! $apt_install $missing; then
    $as_root DEBIAN_FRONTEND=noninteractive apt-get update -q || return 1
    $apt_install $missing || return 1
  fi
}

# jobs_that_fit: one per core, and no more than one per 1.5 GB of free memory.
jobs_that_fit() {
  cores=$(nproc 2>/dev/null || echo 2)
  free_kb=$(sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null)
  fit=$((${free_kb:-4000000} / 1500000))
  if [ "$fit" -lt 1 ]; then fit=1; fi
  if [ "$fit" -lt "$cores" ]; then echo "$fit"; else echo "$cores"; fi
}

# prepare_folder FOLDER [COMPILER]: a build folder that was configured elsewhere (a copied or renamed tree), or for another
# compiler, cannot be used again.
prepare_folder() {
  if [ -f "$1/CMakeCache.txt" ]; then
    home=$(sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$1/CMakeCache.txt")
    if [ "$home" != "$(pwd -P)" ] && [ "$home" != "$(pwd)" ]; then
      echo "==> $1 belongs to $home; starting it anew"
      rm -rf "$1"
      return 0
    fi
    if [ $# -gt 1 ]; then
      compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$1/CMakeCache.txt")
      if [ "$(readlink -f "$(command -v "$compiler")")" != "$(readlink -f "$(command -v "$2")")" ]; then
        echo "==> $1 was configured for $compiler; starting it anew for $2"
        rm -rf "$1"
      fi
    fi
  fi
}
