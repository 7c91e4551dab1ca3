"""How far [E]'s program is from the scheme of its paper: ``python -m benchmarks.published_ve_scheme``.

For the bundled photograph at 12 x 12 this solves the log-density equation as the public program of arXiv 2404.06661 does
(its matrix, its derivative, its iteration over all times), then by the project's ``published_ve`` (solver ``direct``), then
by the program with nothing but the signs of its matrix put as the five-point scheme has them; all from the program's
initial density. Printed is the norm of the difference to the program's score over that score's norm, mean over the
channels, at the times 1, 5, 10 and 19 of 0..19.
"""

from collections.abc import Callable

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.sparse.linalg import spsolve

from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.ranges import to_unit
from scoreexp.numerics.fokker_planck import solve_log_density

Array = NDArray[np.float64]

SIDE, STEPS, SIGMA, TOL, SHOWN, BINS = 12, 20, 5.0, 2e-8, (1, 5, 10, 19), 256
MOST_ITERATIONS = 400


def program_matrix(score: Array, g: float, dt: float, width: int) -> sparse.csr_matrix:
    """The program's matrix on flattened pixels: diffusion + ahead and - behind, advection of one sign."""
    diffusion, advection = g**2 * dt / 2, -(g**2) * score * dt / 4
    return _five_diagonals(advection + diffusion, advection - diffusion, 2 * g**2 * dt, width)


def scheme_matrix(score: Array, g: float, dt: float, width: int) -> sparse.csr_matrix:
    """The same with the signs of the five-point scheme: diffusion - at all four, advection + ahead and - behind."""
    diffusion, advection = g**2 * dt / 2, -(g**2) * score * dt / 4
    return _five_diagonals(advection - diffusion, -advection - diffusion, 2 * g**2 * dt, width)


def _five_diagonals(ahead: Array, behind: Array, centre: float, width: int) -> sparse.csr_matrix:
    n = len(ahead)
    bands = [np.full(n, 1 + centre), ahead[1:], behind[:-1], ahead[width:], behind[:-width]]
    return sparse.diags(bands, [0, 1, -1, width, -width], shape=(n, n), format="csr")


def program_scores(log_p0: Array, matrix: Callable[..., sparse.csr_matrix]) -> Array:
    """Scores ``[N, n]`` by the program's iteration: all times from the last scores, until the log-densities stand still."""
    times, width = np.linspace(1e-3, 1, STEPS), SIDE
    m, score = np.ones((STEPS, log_p0.size)), np.ones((STEPS, log_p0.size))
    for _ in range(MOST_ITERATIONS):
        before, m = m, np.empty_like(m)
        m[0] = log_p0
        for i in range(1, STEPS):
            m[i] = spsolve(matrix(score[i], SIGMA ** times[i], 1 / STEPS, width), m[i - 1])
        padded = np.pad(m, ((0, 0), (1, 1)))  # the derivative runs on from row to row, with 0 at both ends
        score = (padded[:, 2:] - padded[:, :-2]) / 2
        if np.linalg.norm(m - before) <= TOL * np.linalg.norm(before):
            return score
    raise RuntimeError(f"the program's iteration does not stand still after {MOST_ITERATIONS} rounds")


def program_density(image: Array) -> Array:
    """The program's initial log-density of ``image[H, W]``: a smoothed histogram of the pairs (x[i, j], x[j, i])."""
    pairs = np.stack([image.T.ravel(), image.ravel()])
    histogram, _, _ = np.histogram2d(*pairs, bins=BINS, range=[[0, 1], [0, 1]], density=True)
    smooth = gaussian_filter(histogram, pairs.shape[1] ** (-1 / 6) * BINS).clip(1e-300)
    return np.log(map_coordinates(smooth, (pairs * BINS).clip(0, BINS - 1), order=1, mode="nearest"))


def main() -> None:
    """Print the table."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", ["embedding=published_ve", f"data.size={SIDE}", "run_dir=."])
    image = to_unit(instantiate(cfg.data).split("train").samples(np.array([0])))[0].double().numpy()
    settings = instantiate(cfg.embedding.precomputation)
    errors: dict[str, list[list[float]]] = {"whole program, direct": [], "its signs alone": []}
    for channel in image:
        log_p0 = program_density(channel)
        program = program_scores(log_p0, program_matrix)
        field = solve_log_density(
            log_p0.reshape(channel.shape),
            g=settings.g,
            times=settings.times,
            boundary=settings.boundary,
            solver=settings.solver,
            tol=settings.tol,
            max_iter=settings.max_iter,
            spacing=settings.spacing,
        )
        along_columns = field.score[:, 1].reshape(len(field.times), -1)  # as the flattened pixels run
        others = (along_columns, program_scores(log_p0, scheme_matrix))
        for row, other in zip(errors.values(), others, strict=True):
            row.append(
                [float(np.linalg.norm(other[n] - program[n]) / np.linalg.norm(program[n])) for n in SHOWN]
            )
    print(f"{'time':<24}" + "".join(f"{n:>10}" for n in SHOWN))
    for name, rows in errors.items():
        print(f"{name:<24}" + "".join(f"{error:>10.3g}" for error in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
