"""The data of a checkpoint's run. Not in ``run_settings``: data sets bring Lightning, which most commands do without."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from scoreexp.app.run_settings import own_settings
from scoreexp.core.errors import UserError
from scoreexp.data import DataModule
from scoreexp.denoisers import Denoiser


def data_of_run(cfg: DictConfig, model: Denoiser) -> DataModule:
    """The data of ``cfg``: those of the model's run, with the keys that ``cfg.data`` changes, or others.

    Raises:
        UserError: their configuration is wrong, or their samples have another shape than the model's.
    """
    node = own_settings(cfg, model.record, "data", "scoreexp.data", "what it was trained on: give data=NAME")
    data: DataModule = instantiate({"seed": cfg.seed, **node, "batch_size": cfg.batch_size})
    if list(data.event_shape) != list(model.event_shape or ()):
        raise UserError(
            f"the data have samples of shape {list(data.event_shape)}, the model {list(model.event_shape or ())}: "
            "give the data that it was trained on, or of the same shape"
        )
    return data
