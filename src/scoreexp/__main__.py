"""The command ``scoreexp``: ``scoreexp train KEY=VALUE ...`` is ``python -m scoreexp.train KEY=VALUE ...``."""

import ast
import runpy
import sys
from pathlib import Path

COMPLETION = """_scoreexp() {
  local word="${COMP_WORDS[COMP_CWORD]}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "COMMANDS" -- "$word")); return
  fi
  local line="${COMP_LINE#* }"
  COMPREPLY=($(COMP_LINE="$line" COMP_POINT=${#line} scoreexp "${COMP_WORDS[1]}" --shell-completion query=bash 2>/dev/null))
  [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o default -F _scoreexp scoreexp"""


def commands() -> list[str]:
    """The commands, which are the modules beside this one."""
    beside = Path(__file__).parent.glob("*.py")
    return sorted(path.stem for path in beside if not path.stem.startswith("_"))


def what_it_does(name: str) -> str:
    """What the docstring of a command's module says after its first colon."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    text = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    return text.partition(": ")[2].rstrip(".")


def main() -> None:
    """Run the command that the first argument names; ``completion`` prints what makes bash complete them."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "completion":
        sys.stdout.write(COMPLETION.replace("COMMANDS", " ".join(commands())) + "\n")
    elif name in commands():
        del sys.argv[1]
        runpy.run_module(f"scoreexp.{name}", run_name="__main__", alter_sys=True)
    else:
        known = ", ".join(commands())
        width = max(map(len, commands()))
        text = "usage: scoreexp COMMAND [KEY=VALUE ...]\n\n"
        text += "".join(f"  {command:<{width}}  {what_it_does(command)}\n" for command in commands())
        text += '\nscoreexp COMMAND --help lists its keys; eval "$(scoreexp completion)" makes bash complete them\n'
        if name in ("--help", "-h", "help"):
            sys.stdout.write(text)
        else:
            sys.stderr.write(f"error: scoreexp has no command {name} (commands: {known})\n")
            sys.exit(1)


if __name__ == "__main__":
    main()
