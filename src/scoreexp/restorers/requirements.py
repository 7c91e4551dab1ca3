"""What restorers ask of an observation and of a model, each refused in one line that names the restorer."""

from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise, LinearOperator, Observation


def linear_operator(name: str, observation: Observation) -> LinearOperator:
    """The operator of an observation, which must be linear.

    Raises:
        ValueError: it is not.
    """
    operator = observation.operator
    if not isinstance(operator, LinearOperator):
        raise ValueError(f"{name} solves linear problems, and {type(operator).__name__} is no LinearOperator")
    return operator


def gaussian_level(name: str, observation: Observation) -> float:
    """The standard deviation of the noise of an observation, which must be white and Gaussian.

    Raises:
        ValueError: it is not.
    """
    noise = observation.noise
    if not isinstance(noise, GaussianNoise):
        raise ValueError(
            f"{name} is for white Gaussian noise, not {type(noise).__name__}: give GaussianNoise(sigma)"
        )
    return noise.sigma


def event_shape(name: str, model: DenoiserBase) -> tuple[int, ...]:
    """The shape of a model's samples, which it must know.

    Raises:
        ValueError: it does not.
    """
    if model.event_shape is None:
        raise ValueError(f"{name} needs a model that knows the shape of its samples: give the prior of x")
    return model.event_shape
