"""`sdshim completion`: scripts for bash and zsh, made from the command line's grammar.

Commands and options stand in the script; ids, units and namespaces are asked for when they are
needed (`sdshim ps --quiet`, systemctl). No completion library of either shell is used, so the bash
script works without the bash-completion package too.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from sdshim.cli.main import parser

if TYPE_CHECKING:
    from sdshim.core.config import Config

NAMESPACES = "sdshim ps 2>/dev/null | awk 'NR > 1 { print $1 }' | sort -u"
UNITS = (
    "systemctl list-units --all --plain --no-legend 'sdshim-*.service' 2>/dev/null |\n"
    "        awk '{ print $1 }'"
)
NAMES = f"""\
case $cur in
sdshim-*) {UNITS} ;;
*/*) sdshim ps --execs --quiet --wide -n "$space" 2>/dev/null ;;
*) sdshim ps --execs --quiet -n "$space" 2>/dev/null ;;
esac"""

BASH = """\
# bash completion for sdshim; printed by: sdshim completion bash
_sdshim_words() {{
    local cur=$1 prev=$2 command=$3 space=$4
{body}
}}

_sdshim() {{
    local line=${{COMP_LINE:0:COMP_POINT}} cur prev= command= space= word
    local -a words
    read -ra words <<<"$line"
    cur=${{line##*[[:space:]]}}
    [ "$cur" ] && unset 'words[-1]'
    for word in "${{words[@]:1}}"; do
        case $prev in -n | --namespace) space=$word ;; esac
        case $word in -*) ;; *) [ "$command" ] || command=$word ;; esac
        prev=$word
    done
    local -a found
    mapfile -t found < <(_sdshim_words "$cur" "$prev" "$command" "$space")
    if [ "${{found[0]-}}" = '<file>' ]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "${{found[*]}}" -- "$cur")
    case $COMP_WORDBREAKS in
    *:*) # readline has cut the word at its last colon, and wants the rest only
        case $cur in *:*) COMPREPLY=("${{COMPREPLY[@]#"${{cur%"${{cur##*:}}"}}"}}") ;; esac ;;
    esac
}}
complete -F _sdshim sdshim
"""

ZSH = """\
#compdef sdshim
# zsh completion for sdshim; printed by: sdshim completion zsh
_sdshim_words() {{
    local cur=$1 prev=$2 command=$3 space=$4
{body}
}}

_sdshim() {{
    local cur=${{words[CURRENT]}} prev= command= space= word
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case $prev in -n | --namespace) space=$word ;; esac
        case $word in -*) ;; *) [[ -n $command ]] || command=$word ;; esac
        prev=$word
    done
    local -a found
    found=("${{(@f)$(_sdshim_words "$cur" "$prev" "$command" "$space")}}")
    if [[ $found[1] == '<file>' ]]; then
        _files
    else
        compadd -- "${{(@)found:#}}"
    fi
}}
if [[ $funcstack[1] == _sdshim ]]; then _sdshim "$@"; else compdef _sdshim sdshim; fi
"""


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Print the script; returns the exit status."""
    del config
    sys.stdout.write(script(arguments.shell, parser()))
    return 0


def script(shell: str, grammar: argparse.ArgumentParser) -> str:
    """The completion script of `bash` or `zsh`."""
    return (BASH if shell == "bash" else ZSH).format(body=_body(grammar))


def _body(grammar: argparse.ArgumentParser) -> str:
    """POSIX sh that prints candidates, one a line, for $cur after $prev in $command."""
    commands = _subcommands(grammar)
    lines = [
        "    case $prev in",
        "    -n | --namespace)",
        f"        {NAMESPACES}",
        "        return ;;",
        "    --config)",
        "        echo '<file>'",
        "        return ;;",
        "    esac",
        "    case $command in",
        f"    '') {_print([*_options(grammar), *commands])} ;;",
    ]
    for name, command in commands.items():
        lines.append(f"    {name})")
        lines.append(f"        case $cur in -*) {_print(_options(command))}")
        lines.append("            return ;; esac")
        lines += [f"        {line}" for line in _positionals(command)]
        lines.append("        ;;")
    return "\n".join([*lines, "    esac"])


def _subcommands(grammar: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in grammar._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(command: argparse.ArgumentParser) -> list[str]:
    return [word for action in command._actions for word in action.option_strings]


def _positionals(command: argparse.ArgumentParser) -> list[str]:
    """The lines that print what may stand where no option stands."""
    lines: list[str] = []
    for action in command._actions:
        if action.option_strings:
            continue
        if action.choices:
            lines.append(_print(list(map(str, action.choices))))
        elif action.dest == "name":
            lines += NAMES.splitlines()
    return lines or [":"]


def _print(words: list[str]) -> str:
    return f"printf '%s\\n' {' '.join(map(shlex.quote, words))}"
