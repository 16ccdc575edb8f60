#!/usr/bin/env bash
# Sourced by the launchers: errors in one line, a quoting that a shell reads back, calls that --dry-run prints instead.
# They run on a laptop too, so nothing here needs more than the bash 3.2 of macOS.

program="scripts/launch/$(basename "$0")"
dry_run=
exec 3>&1 # where --dry-run prints, also from within $(...)

say() { echo "$*" >&2; }
fail() { say "error: $*"; exit 1; }
bad() { say "error: $* ($program --help lists them)"; exit 2; }

# The comment at the top of the launcher.
help() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# quote WORD...: one line that any POSIX shell reads back as the same words. Unlike printf %q it stays readable when a quoted
# line is quoted again, as it is on its way through `gcloud ... ssh --command`.
quote() {
    local word space="" mark="'\\''"
    for word in "$@"; do
        case "$word" in
            "" | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/"$mark"}'" ;;
        esac
        printf '%s%s' "$space" "$word"
        space=" "
    done
}

# call WORD...: runs a command, or prints it under --dry-run. Whatever leaves this machine goes through here.
call() {
    if [ -n "$dry_run" ]; then
        quote "$@" >&3
        echo >&3
    else
        "$@"
    fi
}

# check FLAG VALUE PATTERN WHAT: the value is there and of its form.
check() {
    [ -n "$2" ] || bad "$1 is missing: give $4"
    [[ "$2" =~ ^($3)$ ]] || bad "$1=$2 is not allowed: give $4"
}

# planned DIR WORDS...: what a plan asks of this launcher (scripts/launch/planned.py), which ends here where the call asks for another thing.
planned() { "$(command -v python3 || echo .venv/bin/python)" scripts/launch/planned.py "$@" || exit; }

# parse ARGUMENT...: what all launchers understand. --flag=VALUE sets the variable of a flag that is named in $values, the words after
# -- are the command, and every other argument is for the launcher's own_flag.
# shellcheck disable=SC2034,SC2154 # the launchers set `values` and read `command`
parse() {
    local _flag
    while [ $# -gt 0 ]; do
        _flag=${1%%=*} && _flag=${_flag#--}
        case "$1" in
            --dry-run) dry_run=1 ;;
            -h | --help) help && exit ;;
            --) shift && command=("$@") && break ;;
            --*=*) if [[ " $values " = *" $_flag "* ]]; then printf -v "${_flag//-/_}" %s "${1#*=}"; else own_flag "$1"; fi ;;
            *) own_flag "$1" ;;
        esac
        shift
    done
}

# archive TAR: TAR.gz of the working tree (what git tracks, and new files that it does not ignore) and of what a run reads of the plan
# in $plan, if there is one, as the folder planned/.
archive() {
    local file packed
    # git also lists files that it tracks and that are gone.
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
        [ ! -e "$file" ] || printf '%s\0' "$file"
    done | COPYFILE_DISABLE=1 tar --null -cf "$1" -T - || return
    for file in plan.json executable; do # without the folder itself, which `rm` on a worker could not take away
        [ -n "${plan:-}" ] && [ -e "$plan/$file" ] || continue
        packed="$(dirname "$1")/planned"
        mkdir -p "$packed" && cp "$plan/$file" "$packed/" || return
        COPYFILE_DISABLE=1 tar -rf "$1" -C "$(dirname "$1")" "planned/$file" || return
    done
    gzip -f "$1"
}
