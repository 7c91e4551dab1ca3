"""``python -m scoreexp.compare sweep=NAME``: compare methods under equal conditions and write a report."""

import re
import sys

from scoreexp.app.launch import run_app

SCHEMA = {
    "experiments": "list[str] | None",
    "data.path": "str | list[str] | None",
    "data.size": "PositiveInt | None",
    "methods": "list[str] | None",
    "overrides": "list[str]",
    "n_parallel": "PositiveInt",
    "gpus": "list[int] | None",
    "devices_per_job": "PositiveInt",
    "fail_fast": "bool",
    "report_only": "bool",
    "run_dir": "str",
    "sweep.name": "str",
    "sweep.title": "str | None",
    "sweep.mode": "Literal['target', 'budget']",
    "sweep.monitor": "str | None",
    "sweep.target": "float | None",
    "sweep.seconds": "PositiveFloat | None",
    "sweep.seeds": "list[int]",
    "sweep.baseline": "str | None",
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
    task = "scoreexp.app.commands.compare:compare"
    sys.exit(run_app("compare", task, schema=SCHEMA, argv=arguments(sys.argv[1:])))
