"""``python -m scoreexp.compare sweep=NAME``: compare methods under equal conditions and write a report.

With ``restorers=[dds,ddrm]`` it compares restorers on tasks instead, with one model as the prior.
"""

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
RESTORERS = {
    **dict.fromkeys(("restorers", "tasks", "trust"), "list[str]"),
    **dict.fromkeys(("input", "ckpt", "device", "run_dir"), "str"),
    "weights": "Literal['averaged', 'raw']",
    **dict.fromkeys(("count", "nfe"), "PositiveInt | None"),
    "seconds": "PositiveFloat | None",
    "guidance": "Node | None",
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


def main(argv: list[str]) -> int:
    """The exit code."""
    if any(word.startswith("restorers=") for word in argv):
        task = "scoreexp.app.commands.restore_comparison:compare"
        return run_app("compare_restorers", task, schema=RESTORERS, argv=argv, module="scoreexp.compare")
    return run_app("compare", "scoreexp.app.commands.compare:compare", schema=SCHEMA, argv=arguments(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
