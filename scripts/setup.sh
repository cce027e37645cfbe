# Sourced by scripts/run and scripts/test: makes sure that .venv holds the pinned packages.
# Usage: . scripts/setup.sh; set_up run|test
# POSIX sh. Does nothing but compare a stamp when all is there.

APT_PACKAGES="ffmpeg libcairo2-dev libpango1.0-dev pkg-config build-essential python3-dev python3-venv gifsicle"

say() {
    printf '%s\n' "$*" >&2
}

# The packages to be installed change with these two files only.
wanted_stamp() {
    cat pyproject.toml constraints.txt | cksum
}

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.13 python3.14; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    say "Python 3.11 or newer was not found. Install it (apt install python3 · dnf install python3 · brew install python3),"
    say "or name it: PYTHON=/path/to/python3 $0"
    return 1
}

# Manim's text and drawing libraries are compiled on Linux, so headers and a compiler are needed once.
system_is_ready() {
    command -v ffmpeg >/dev/null 2>&1 || return 1
    command -v cc >/dev/null 2>&1 || return 1
    pkg-config --exists cairo pangocairo 2>/dev/null || return 1
    "$1" -c 'import ensurepip, venv' 2>/dev/null || return 1
    if [ "$(uname)" = Linux ]; then
        "$1" -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || return 1
    fi
}

install_system_libraries() {
    if system_is_ready "$1"; then
        return 0
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "Installing system libraries: $APT_PACKAGES"
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086 # a list of words
        { apt-get update -q && apt-get install -qy --no-install-recommends $APT_PACKAGES; } >&2
        if system_is_ready "$1"; then
            return 0
        fi
    fi
    say "System libraries are missing. Install them and run this again:"
    say "  Debian, Ubuntu:  sudo apt install $APT_PACKAGES"
    say "  Fedora:          sudo dnf install ffmpeg cairo-devel pango-devel pkgconf gcc python3-devel gifsicle"
    say "  macOS:           brew install ffmpeg cairo pango pkg-config gifsicle"
    say "(gifsicle is optional: it makes GIFs smaller.)"
    return 1
}

# The tests of pages drive a real browser; without one they are skipped.
install_browser() {
    for candidate in chromium chromium-browser google-chrome; do
        if command -v "$candidate" >/dev/null 2>&1; then
            return 0
        fi
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        say "Installing chromium for the tests of pages"
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -q && apt-get install -qy --no-install-recommends chromium; } >&2 && return 0
    fi
    say "No Chromium was found: the tests of pages will be skipped."
    say "Install it to run them (apt install chromium · dnf install chromium · brew install --cask chromium)."
}

set_up() {
    stamp="$(wanted_stamp)"
    # What the tests need holds what a run needs.
    for kind in test "$1"; do
        if [ "$(cat ".venv/.ready-$kind" 2>/dev/null)" = "$stamp" ] && [ -x .venv/bin/python ]; then
            return 0
        fi
    done
    python="$(find_python)" || return 1
    install_system_libraries "$python" || return 1
    if [ "$1" = test ]; then
        install_browser
    fi
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        say "Making .venv"
        "$python" -m venv --clear .venv || return 1
    fi
    case "$1" in
        test) what=".[dev]" ;;
        *) what="." ;;
    esac
    say "Installing the pinned packages into .venv (a few minutes, once)"
    .venv/bin/python -m pip install -q --disable-pip-version-check -e "$what" -c constraints.txt >&2 || return 1
    printf '%s\n' "$stamp" >".venv/.ready-$1"
}
