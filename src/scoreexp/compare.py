"""``python -m scoreexp.compare sweep=NAME``: compare methods, or restorers, under equal conditions."""

import re
import sys

from scoreexp.app.launch import run_app
from scoreexp.app.restorer_table import is_asked_for, main

SCHEMA = {
    **dict.fromkeys(("experiments", "methods"), "list[str] | None"),
    "data.path": "str | list[str] | None",
    "data.size": "PositiveInt | None",
    "overrides": "list[str]",
    **dict.fromkeys(("n_parallel", "devices_per_job"), "PositiveInt"),
    "gpus": "list[int] | None",
    **dict.fromkeys(("fail_fast", "report_only"), "bool"),
    **dict.fromkeys(("run_dir", "sweep.name"), "str"),
    **dict.fromkeys(("sweep.title", "sweep.monitor", "sweep.baseline"), "str | None"),
    "sweep.mode": "Literal['target', 'budget']",
    "sweep.target": "float | None",
    "sweep.seconds": "PositiveFloat | None",
    "sweep.seeds": "list[int]",
    "sweep.common": "list[str]",
    "sweep.methods": "dict[str, list[str]]",
}


def arguments(argv: list[str]) -> list[str]:
    """The command line; with ``experiments=``, they take the place of a sweep's file.

    Example:
        >>> arguments(["experiments=[a,b]"])
        ['experiments=[a,b]', 'sweep=experiments', 'sweep.name=a+b']
    """
    given = next((word for word in argv if word.startswith("experiments=")), None)
    if given is None or not (names := re.findall(r"[\w.-]+", given.partition("=")[2])):
        return argv
    named = any(word.startswith("sweep.name=") for word in argv)
    return [*argv, "sweep=experiments", *([] if named else [f"sweep.name={'+'.join(names)}"])]


if __name__ == "__main__":
    if is_asked_for(sys.argv[1:]):
        sys.exit(main(sys.argv[1:]))
    task = "scoreexp.app.commands.compare:compare"
    sys.exit(run_app("compare", task, schema=SCHEMA, argv=arguments(sys.argv[1:])))
