"""Write the shell completions anew: python3 tools/completions.py DIRECTORY

shtab makes them from the program's own parser. What a value may be, which the parser leaves to the
program, it is told here: files and directories by the names that the help has for them.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).resolve().parent.parent

# The name of each file is the one by which its shell finds it.
FILES = {"bash": "archive_overlay", "zsh": "_archive_overlay", "fish": "archive_overlay.fish"}

# What shtab cannot do: values after --option=, tags and revisions. The program gives what can come after the last colon or at
# sign of a word.
#
# bash cuts words at the characters of COMP_WORDBREAKS, colons and at signs among them, and replaces what comes after the
# last one (an at sign with it). So the words are put together again first, by what stands between them in the line.
IMAGES = {
    "bash": r"""
_archive_overlay() {
  local line="$COMP_LINE" word cword=0 words=() i
  for ((i = 0; i < ${#COMP_WORDS[@]}; i++)); do
    word="${COMP_WORDS[i]}"
    if ((i == 0)) || [[ $line == [[:space:]]* || -z $COMP_LINE ]]; then
      words+=("$word")
    else
      words[${#words[@]}-1]+="$word"
    fi
    line="${line#"${line%%[![:space:]]*}"}"
    line="${line#"$word"}"
    ((i == COMP_CWORD)) && cword=$((${#words[@]} - 1))
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$cword
  word="${words[cword]}"
  if [[ $word == --*=* ]]; then
    local option="${word%%=*}"
    COMP_WORDS=("${words[@]:0:cword}" "$option" "${word#*=}")
    COMP_CWORD=$((cword + 1))
    _shtab_archive_overlay
    [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${COMPREPLY[@]/#/$option=}")
    return
  fi
  if [[ $word == *:* ]] && _archive_overlay_images "$word"; then
    return
  fi
  _shtab_archive_overlay
}

_archive_overlay_images() {
  local word="$1" head="${1%"${1##*[:@]}"}" cut="$1" found
  found=$("${COMP_WORDS[0]/#\~\//$HOME/}" __complete "${COMP_WORDS[1]}" "${word/#\~\//$HOME/}" 2>/dev/null) || return 1
  while [[ -n $cut && $COMP_WORDBREAKS != *"${cut: -1}"* ]]; do
    cut="${cut%?}"
  done
  cut="${cut%@}"
  COMPREPLY=()
  while IFS= read -r word; do
    word="$head$word"
    COMPREPLY+=("${word#"$cut"}")
  done <<<"$found"
  [[ $head == *@ ]] || compopt -o nospace 2>/dev/null
}
""",
    "zsh": r"""
_archive_overlay_images() {
  if [[ $PREFIX == *:* ]]; then
    local word=${(Q)PREFIX}
    [[ $word == '~/'* ]] && word=$HOME/${word#'~/'}
    local -a found
    found=(${(f)"$(_call_program images archive_overlay __complete ${(q)words[1]} ${(q)word} 2>/dev/null)"})
    if (( $#found )); then
      compset -P '*[:@]'
      compadd -S '' -a found
      return
    fi
  fi
  _files "$@"
}
""",
    "fish": r"""
function _archive_overlay_images
  set -l words (commandline -opc)
  set -l word (commandline -ct)
  if string match -q '*:*' -- $word
    set -l found (command archive_overlay __complete $words[2] (string replace -r '^~/' $HOME/ -- $word) 2>/dev/null)
    if set -q found[1]
      string join \n -- (string replace -r '[^:@]*$' '' -- $word)$found
      return
    end
  end
  if test "$argv" = directories
    __fish_complete_directories
  else
    __fish_complete_path $word
  end
end
""",
}


def main() -> None:
    """Read the command line and write all files."""
    parser = argparse.ArgumentParser(description="Write the shell completions anew.")
    parser.add_argument("directory", type=Path, help="where they go")
    directory: Path = parser.parse_args().directory
    directory.mkdir(exist_ok=True)
    for shell, name in FILES.items():
        (directory / name).write_text(completion(shell))


def completion(shell: str) -> str:
    """Give the completion for one shell, one of `FILES`."""
    try:
        import shtab
    except ModuleNotFoundError:
        sys.exit("completions.py: there is no shtab; tools/requirements.txt says which one is wanted")
    sys.path.insert(0, str(TOP))
    from archive_overlay import cli, log

    parser = cli.build_parser()
    archive = {**shtab.FILE, "zsh": "_archive_overlay_images", "fish": "(_archive_overlay_images)"}
    image = {
        **shtab.DIRECTORY,
        "zsh": "_archive_overlay_images -/",
        "fish": "(_archive_overlay_images directories)",
    }
    values: dict[str, dict[str, object]] = {
        **{key: {"complete": shtab.FILE} for key in ("PATH", "FILE", "PROGRAM")},
        **{key: {"complete": archive} for key in ("WHAT", "WHAT2", "ARCHIVE")},
        "DIR": {"complete": shtab.DIRECTORY},
        "LAYOUT": {"complete": image},
        "LEVEL": {"choices": log.LEVEL_NAMES},
    }
    for action in actions(parser):
        if isinstance(action.metavar, str) and action.dest != "paths":  # those are in an image
            word = re.match("[A-Z0-9-]*", action.metavar)
            vars(action).update(values.get(word[0] if word else "", {}))
    # Lines that end in blanks are none of a shell's business, and git complains about them.
    lines = [line.rstrip() for line in shtab.complete(parser, shell, preamble=IMAGES).splitlines()]
    if shell == "bash":
        assert lines[-1] == "complete -o bashdefault -F _shtab_archive_overlay archive_overlay"
        lines[-1] = "complete -o bashdefault -F _archive_overlay archive_overlay"
    if shell == "zsh":
        # An option with a value may have it after an equals sign, too.
        lines = [re.sub(r'^(  "\*?--[a-z-]+)(\[.*[^\\]\]:)', r"\1=\2", line) for line in lines]
    return "\n".join(lines).strip() + "\n"


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Give all options and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for summary in action._choices_actions:
                command = action.choices[summary.dest]
                # zsh shows it beside the command's name.
                command.description = summary.help
                yield from actions(command)


if __name__ == "__main__":
    main()
