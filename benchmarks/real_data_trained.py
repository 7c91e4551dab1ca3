"""What runs on real data came to: ``python -m benchmarks.real_data_trained NAME=RUN [...] [--docs]``

Reads the folders of runs of ``experiment=NAME``, finished or not: steps, seconds of training, the Fréchet distances that
the run logged, and what ``python -m scoreexp.evaluate`` stored beside them. ``--bits NAME=STEP=FILE`` adds the bits per
dimension of an earlier checkpoint from the ``evaluation.json`` that ``evaluate ckpt=CKPT out=DIR`` wrote. Rows that are not
named stay as they are stored in benchmarks/results/real_data_trained.json; ``--docs`` writes the table of docs/data.md
from all of them. Takes a second.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.pages import DOCS, write_table
from scoreexp.runs.reporting.reading import read_run
from scoreexp.system.json_files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "real_data_trained.json"
FRECHET, LIKELIHOOD = "val/frechet", "bits_per_dim"


def facts(folder: Path) -> dict[str, Any]:
    """Of one run folder.

    Raises:
        ValueError: there is no run in it, or it has logged nothing.
    """
    run = read_run(folder)
    if not run.rows:
        raise ValueError(f"{folder} has no metrics.csv: give the folder of a run that has started")
    logged = [
        {"step": int(row["step"]), "seconds": round(row["time/train"]), "name": name[4:], "value": row[name]}
        for row in run.rows
        for name in row
        if name.startswith(FRECHET)
    ]
    values, cards = run.evaluation.get("values", {}), run.evaluation.get("cards", {})
    return {
        "state": run.state,
        "command": f"python -m scoreexp.train experiment={run.config['name']}",
        "revision": run.manifest.get("revision"),
        "device": run.manifest.get("device"),
        "steps": int(run.rows[-1]["step"]),
        "steps_asked": int(run.config["trainer"]["max_steps"]),
        "seconds": round(run.rows[-1]["time/train"]),
        "frechet": logged,
        "evaluation": {
            name: {
                "value": value,
                "n": cards[name].get("n_generated", cards[name].get("n")),
                "n_reference": cards[name].get("n_reference"),
                "split": cards[name].get("split"),
            }
            for name, value in values.items()
        },
    }


def bits_of(file: Path) -> dict[str, Any]:
    """Bits per dimension in an ``evaluation.json``."""
    found = read_json(file)
    return {"value": found["values"][LIKELIHOOD], "n": found["cards"][LIKELIHOOD]["n"]}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a run a line."""
    titles = (
        "run",
        "steps",
        "hours",
        "Fréchet distance (step)",
        "bits/dim (step)",
        "nearest training image",
        "copies",
    )
    lines = [f"| {' | '.join(titles)} |", "| --- | ---: | ---: | --- | ---: | ---: | ---: |"]
    for name, row in rows.items():
        frechet = ", ".join(f"{at['value']:.4f} ({at['step']:,})" for at in row["frechet"]) or "–"
        found = {key.split("_pixels")[0]: value for key, value in row["evaluation"].items()}
        bits = [f"{at['value']:.2f} ({at['step']:,})" for at in row.get("bits", [])]
        if LIKELIHOOD in found:
            last = found[LIKELIHOOD]
            bits.append(f"{last['value']:.2f} (best; {last['n']} images)")
        near, copies = found.get("nearest_neighbour"), found.get("memorised_share")
        cells = [
            f"`{name}`",
            f"{row['steps']:,} of {row['steps_asked']:,}",
            f"{row['seconds'] / 3600:.2f}",
            frechet,
            ", ".join(bits) or "–",
            "–" if near is None else f"{near['value']:.2f}",
            "–" if copies is None else f"{round(copies['value'] * copies['n'])} of {copies['n']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN", help="folders of runs")
    parser.add_argument("--bits", nargs="+", default=[], metavar="NAME=STEP=FILE", help="of earlier steps")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/data.md")
    given = parser.parse_args()
    stored = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, _, folder in (word.partition("=") for word in given.runs):
        earlier = stored.get(name, {}).get("bits")
        stored[name] = facts(Path(folder)) | ({"bits": earlier} if earlier else {})
    for name, step, file in (word.split("=", 2) for word in given.bits):
        others = [at for at in stored[name].get("bits", []) if at["step"] != int(step)]
        at = {"step": int(step), **bits_of(Path(file))}
        stored[name]["bits"] = sorted([*others, at], key=lambda row: row["step"])
    write_json(RESULT, stored)
    print(table(stored))
    if given.docs:
        write_table(DOCS / "data.md", "real_data_trained", table(stored))


if __name__ == "__main__":
    main()
