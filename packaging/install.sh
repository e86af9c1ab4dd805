#!/bin/sh
# Installs sdshim from a working tree; run with --help for the options.
#
# Layout below the prefix:
#   lib/sdshim/v/HASH/sdshim   the package, one folder per content.  An upgrade makes the new one,
#                              turns the link below in one rename, and keeps the one before it: a
#                              daemon that still runs imports from its own folder, never from two.
#   lib/sdshim/sdshim          link to the current one
#   lib/sdshim/deps            Python packages the system lacks
#   lib/systemd/system         unit files
#   bin/sdshim, bin/containerd-shim-systemd-v1
#   share/bash-completion/completions/sdshim, share/zsh/site-functions/_sdshim
set -eu
umask 022 # whatever root's is: root runs what lies here, everybody may call it

# What sdshim imports; those the system has in the wanted version are not installed (see below).
# OpenTelemetry's protocol package needs protobuf 5, Debian has 3.21: one interpreter can hold only
# one, so protobuf comes from here too, deps stand before the system's packages on sys.path, and
# our own generated code uses that same one.  With --no-deps all is the system's, without OTLP.
# dbus-next is the system's if it has it: pure Python, the same release everywhere.
requirements='protobuf>=5.26
opentelemetry-sdk>=1.27
opentelemetry-exporter-otlp-proto-http>=1.27
grpcio>=1.63
opentelemetry-exporter-otlp-proto-grpc>=1.27'
dbus_requirement='dbus-next>=0.2.3'

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

usage() {
    cat <<'END'
usage: install.sh [options]
  --destdir DIR    install below DIR instead of / (a root file system, or empty for packaging)
  --prefix DIR     default /usr/local
  --python PATH    the interpreter sdshim runs with, default /usr/bin/python3
  --no-deps        do not install Python dependencies
  --deps-only      install nothing else
  --list-deps      print the Python dependencies and exit
  --uninstall      remove what an installation made
END
}

destdir=
prefix=/usr/local
python=/usr/bin/python3
deps=yes
code=yes
action=install
while [ $# -gt 0 ]; do
    case $1 in
    --destdir | --prefix | --python)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in
        --destdir) destdir=${2%/} ;;
        --prefix) prefix=${2%/} ;;
        --python) python=$2 ;;
        esac
        shift
        ;;
    --no-deps) deps=no ;;
    --deps-only) code=no ;;
    --list-deps) action=list ;;
    --uninstall) action=uninstall ;;
    --help | -h) action=help ;;
    *) fail "unknown option $1 (see --help)" ;;
    esac
    shift
done

source=$(cd "$(dirname "$0")/.." && pwd)
lib=$destdir$prefix/lib/sdshim
bin=$destdir$prefix/bin
units=$destdir$prefix/lib/systemd/system
bash_completion=$destdir$prefix/share/bash-completion/completions/sdshim
zsh_completion=$destdir$prefix/share/zsh/site-functions/_sdshim

# Is the system that is installed to the one that runs?
live() {
    [ -z "$destdir" ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null
}

# The target's interpreter: in its own root where it has one, so that the bytecode fits.
target_python() {
    if [ -n "$destdir" ] && [ -x "$destdir$python" ]; then
        chroot "$destdir" "$python" "$@"
    else
        "$python" "$@"
    fi
}

# Bytecode that is never checked against its source: nothing below these folders is ever edited.
compile() {
    if [ -n "$destdir" ] && [ ! -x "$destdir$python" ]; then
        target_python -m compileall -q -s "$destdir" --invalidation-mode unchecked-hash "$1"
    else
        target_python -m compileall -q --invalidation-mode unchecked-hash "${1#"$destdir"}"
    fi || fail "compiling $1 failed"
}

# Of names, contents and modes, and of the Python the bytecode is for.
content_hash() {
    (target_python -V && cd "$1" && find . -type f ! -name '*.pyc' ! -path '*/.*' -print | LC_ALL=C sort |
        xargs -d '\n' sha256sum && find . -type f -perm /111 | LC_ALL=C sort) |
        sha256sum | cut -c1-12
}

# --- Python dependencies ------------------------------------------------------------------------

# Any pip will do: it only unpacks wheels made for the target's Python.
pip() {
    for runner in "$python" python3; do
        if "$runner" -m pip --version >/dev/null 2>&1; then
            "$runner" -m pip "$@"
            return
        fi
    done
    fail "no pip found (Debian: python3-pip); install it, or use --no-deps"
}

install_deps() {
    version=$(target_python -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        fail "$python does not run in ${destdir:-/}"
    wanted=$requirements
    if ! target_python -c 'import dbus_next' 2>/dev/null; then
        wanted="$wanted
$dbus_requirement"
    fi
    stamp="python $version
$wanted"
    if [ "$(cat "$lib/deps/.stamp" 2>/dev/null)" = "$stamp" ]; then
        echo "dependencies: already there"
        return
    fi
    machine=$(uname -m)
    rm -rf "$lib/deps.new"
    mkdir -p "$lib/deps.new"
    # shellcheck disable=SC2086  # one argument per line of the list
    (IFS='
'; pip install -qq --disable-pip-version-check --no-compile --no-warn-conflicts \
        --root-user-action=ignore --target "$lib/deps.new" --only-binary=:all: \
        --python-version "$version" --implementation cp \
        --abi "cp$(echo "$version" | tr -d .)" --abi abi3 --abi none \
        --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" \
        --platform "manylinux2014_$machine" --platform "manylinux1_$machine" \
        $wanted) || { rm -rf "$lib/deps.new"; fail "pip could not install the dependencies"; }
    rm -rf "$lib/deps.new/bin"
    # Where the system's `google` has an __init__, a namespace without one would lose to it.
    [ -d "$lib/deps.new/google" ] && : >"$lib/deps.new/google/__init__.py"
    compile "$lib/deps.new"
    echo "$stamp" >"$lib/deps.new/.stamp"
    rm -rf "$lib/deps"
    mv "$lib/deps.new" "$lib/deps"
    echo "dependencies: $(du -sh "$lib/deps" | cut -f1) for Python $version in $prefix/lib/sdshim/deps"
}

# --- the package --------------------------------------------------------------------------------

install_package() {
    hash=$(content_hash "$source/sdshim")
    if [ ! -d "$lib/v/$hash" ]; then
        new=$lib/v/.new.$$
        rm -rf "$lib"/v/.new.*
        mkdir -p "$new"
        (cd "$source" && find sdshim -type d -name __pycache__ -prune -o -type f -print |
            tar -cf - --owner=0 --group=0 -T -) | tar -xf - -C "$new" --no-same-owner
        find "$new" -type d -exec chmod 755 {} +
        find "$new" -type f -exec chmod a+r {} +
        build_helpers "$new/sdshim/launcher"
        compile "$new"
        mv "$new" "$lib/v/$hash"
    fi
    before=$(readlink "$lib/sdshim" 2>/dev/null | cut -d/ -f2) || before=
    ln -s "v/$hash/sdshim" "$lib/.link.$$"
    mv -T "$lib/.link.$$" "$lib/sdshim"
    for old in "$lib"/v/*; do
        case ${old##*/} in
        "$hash" | "$before") ;;
        *) rm -rf "$old" ;;
        esac
    done
    echo "package: $prefix/lib/sdshim/sdshim ($hash)"
}

# Programs in C have a twin in Python: without a compiler that one is used.
build_helpers() {
    for file in "$1"/*.c; do
        [ -e "$file" ] || continue
        name=${file%.c}
        if ${CC:-cc} -O2 -s -Wall -static -o "$name" "$file" 2>/dev/null ||
            ${CC:-cc} -O2 -s -Wall -o "$name" "$file" 2>/dev/null; then
            chmod 755 "$name"
        else
            echo "helper ${name##*/}: no C compiler, its Python twin will be used"
        fi
    done
}

# -S spares the interpreter `site` with its .pth files; so the system's packages are named here,
# last.  No dependency is imported before something needs it.
install_programs() {
    mkdir -p "$bin"
    system=$(target_python -c 'import site; print(site.getsitepackages())') ||
        fail "$python does not run in ${destdir:-/}"
    cat >"$bin/.sdshim.$$" <<END
#!$python -IS
import os, sys
lib = "$prefix/lib/sdshim/"
sys.path[:0] = [lib + os.path.dirname(os.readlink(lib + "sdshim")), lib + "deps"]
sys.path += $system
from sdshim.cli.main import main
sys.exit(main())
END
    chmod 755 "$bin/.sdshim.$$"
    mv "$bin/.sdshim.$$" "$bin/sdshim"
    shim=containerd-shim-systemd-v1
    if [ -e "$source/sdshim/launcher/$shim" ]; then
        cp "$source/sdshim/launcher/$shim" "$bin/.$shim.$$"
        chmod 755 "$bin/.$shim.$$"
        mv "$bin/.$shim.$$" "$bin/$shim"
    fi
    echo "programs: $(cd "$bin" && ls -d sdshim "$shim" 2>/dev/null | tr '\n' ' ')in $prefix/bin"
}

# The scripts are made by the program itself, run from its folder: it needs no dependency for that.
install_completion() {
    package=$lib
    if [ -n "$destdir" ] && [ -x "$destdir$python" ]; then package=${lib#"$destdir"}; fi
    for shell in bash zsh; do
        eval "file=\$${shell}_completion"
        mkdir -p "${file%/*}"
        target_python -ISB -c "import sys; sys.path.insert(0, sys.argv[1])
from sdshim.cli.main import main
sys.exit(main(['completion', sys.argv[2]]))" "$package" "$shell" >"$lib/.completion.$$" ||
            fail "making the completion for $shell failed"
        chmod 644 "$lib/.completion.$$"
        mv "$lib/.completion.$$" "$file"
    done
    echo "completion: bash and zsh, in $prefix/share"
}

# Files are written for /usr/local; another prefix is put in their place.
install_units() {
    mkdir -p "$units"
    : >"$lib/.units.new"
    (cd "$source/units" 2>/dev/null && find . -type f \( -name '*.service' -o -name '*.socket' \
        -o -name '*.target' -o -name '*.slice' -o -name '*.conf' \) | LC_ALL=C sort) |
        while IFS= read -r file; do
            file=${file#./}
            mkdir -p "$units/$(dirname "$file")"
            sed "s|/usr/local/|$prefix/|g" "$source/units/$file" >"$units/.unit.$$"
            chmod 644 "$units/.unit.$$"
            mv "$units/.unit.$$" "$units/$file"
            echo "$file" >>"$lib/.units.new"
        done
    if [ -e "$lib/units.list" ]; then # what an older version had and this one has not
        while IFS= read -r file; do
            grep -qxF "$file" "$lib/.units.new" || rm -f "$units/$file"
        done <"$lib/units.list"
    fi
    mv "$lib/.units.new" "$lib/units.list"
    echo "units: $(grep -c . "$lib/units.list" || true) in $prefix/lib/systemd/system"
}

activate() {
    live || return 0
    systemctl daemon-reload
    [ -e "$units/sdshim.socket" ] || return 0
    if systemctl --quiet enable --now sdshim.socket sdshim.target &&
        systemctl try-restart sdshim.service; then
        echo "systemd: sdshim.socket and sdshim.target are enabled and running"
    else
        echo "systemd: could not start sdshim (see: systemctl status sdshim.socket)" >&2
    fi
}

uninstall() {
    if live; then
        systemctl --quiet disable --now sdshim.socket sdshim.service sdshim.target 2>/dev/null || true
    fi
    if [ -e "$lib/units.list" ]; then
        while IFS= read -r file; do
            rm -f "$units/$file"
            case $file in */*) rmdir "$units/${file%/*}" 2>/dev/null || true ;; esac
        done <"$lib/units.list"
    fi
    rm -rf "$lib" "$bin/sdshim" "$bin/containerd-shim-systemd-v1"
    rm -f "$bash_completion" "$zsh_completion"
    if live; then systemctl daemon-reload; fi
    echo "sdshim is removed from ${destdir}$prefix"
}

case $action in
help) usage ;;
list) printf '%s\n' "$requirements" "$dbus_requirement" ;;
uninstall) uninstall ;;
install)
    [ -d "$source/sdshim" ] || fail "no sdshim package beside $0"
    mkdir -p "$lib/v" || fail "cannot write to $lib"
    if [ $deps = yes ]; then install_deps; fi
    if [ $code = yes ]; then
        install_package
        install_programs
        install_completion
        install_units
        activate
    fi
    ;;
esac
