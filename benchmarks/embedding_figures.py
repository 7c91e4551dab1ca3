"""The pictures of docs/score_embedding.md: ``python -m benchmarks.embedding_figures``.

Score fields and embedded images of the bundled photograph at 32 x 32 for the three variants of the embedding, from
their configuration files.
"""

from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.ranges import to_unit
from scoreexp.core.streams import stream_seed
from scoreexp.embedding.cache import solve_fields, stacked
from scoreexp.figures.fields import embedded_strip, field_over_time, residual_curves

FOLDER = Path(__file__).parent.parent / "docs" / "figures"


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for variant in ("spectral", "published", "published_ve"):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", [f"embedding={variant}", "embedding.cache=null", "run_dir=."])
        data, embedding = instantiate(cfg.data), instantiate(cfg.embedding)
        x = to_unit(data.split("train").samples(np.array([0])))
        (solved,) = solve_fields(x.permute(0, 2, 3, 1).numpy(), embedding, seed=0)
        (field,) = solved.fields
        path = embedding(x, stacked([field]), [stream_seed(0, 0)])
        if (
            field.log_p.ndim == 3
        ):  # one density for the image; three, one per channel, make too large a picture
            field_over_time(field, FOLDER / f"score_field_{variant}.png")
        embedded_strip(embedding.times, path[:, 0], FOLDER / f"embedded_{variant}.png")
        residual_curves(field, FOLDER / f"residuals_{variant}.png")
        moved = (path[-1] - path[0]).square().mean().sqrt()
        print(f"{variant}: the last image differs from the photograph by {moved:.4f} rms (range [0, 1])")


if __name__ == "__main__":
    main()
