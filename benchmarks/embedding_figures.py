"""The pictures of docs/score_embedding.md: ``python -m benchmarks.embedding_figures``.

Score fields and embedded images of the bundled photograph at 32 x 32 for the three variants of the embedding, from
their configuration files.
"""

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from benchmarks.pages import FIGURES, shrink
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.ranges import to_unit
from scoreexp.core.streams import stream_seed
from scoreexp.embedding.cache import solve_fields, stacked
from scoreexp.figures.fields import embedded_strip, field_over_time, residual_curves


def draw(variant: str) -> None:
    """The pictures of one variant of the embedding."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [f"embedding={variant}", "embedding.cache=null", "run_dir=."])
    photo, embedding = instantiate(cfg.data), instantiate(cfg.embedding)
    x = to_unit(photo.split("train").samples(np.array([0])))
    (solved,) = solve_fields(x.permute(0, 2, 3, 1).numpy(), embedding, seed=0)
    (field,) = solved.fields
    path = embedding(x, stacked([field]), [stream_seed(0, 0)])
    if field.log_p.ndim == 3:  # one density for the image; three, one per channel, make too large a picture
        field_over_time(field, FIGURES / f"score_field_{variant}.png")
    embedded_strip(embedding.times, path[:, 0], FIGURES / f"embedded_{variant}.png")
    residual_curves(field, FIGURES / f"residuals_{variant}.png")
    for drawn in FIGURES.glob(f"*_{variant}.png"):
        shrink(drawn)
    moved = (path[-1] - path[0]).square().mean().sqrt()
    print(f"{variant}: the last image differs from the photograph by {moved:.4f} rms (range [0, 1])")


def main() -> None:
    """Draw all pictures."""
    for variant in ("spectral", "published", "published_ve"):
        draw(variant)


if __name__ == "__main__":
    main()
