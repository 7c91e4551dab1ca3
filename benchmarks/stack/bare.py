"""A denoiser on Lightning and Hydra as their documentation uses them: what scoreexp is held against."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

log = logging.getLogger(__name__)


class Net(nn.Sequential):
    """A perceptron on 16 numbers."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, 16))


class Data(pl.LightningDataModule):
    """Normal vectors; their first number is their position in the data set."""

    def __init__(self, samples: int, batch_size: int, num_workers: int, shuffle: bool) -> None:
        super().__init__()
        x = torch.randn(samples, 16, generator=torch.Generator().manual_seed(0))
        x[:, 0] = torch.arange(samples)
        self.set = TensorDataset(x)
        self.batch_size, self.num_workers, self.shuffle = batch_size, num_workers, shuffle

    def _loader(self, shuffle: bool) -> DataLoader:
        return DataLoader(
            self.set,
            self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.shuffle)

    def val_dataloader(self) -> DataLoader:
        return self._loader(False)

    def test_dataloader(self) -> DataLoader:
        return self._loader(False)


class Files(Data):
    """The vectors that lie in the files of a folder."""

    def __init__(self, root: str, **settings: Any) -> None:
        super().__init__(**settings)
        files = sorted(os.listdir(root))
        self.set = TensorDataset(torch.stack([torch.load(Path(root) / file) for file in files]))


class Module(pl.LightningModule):
    """Predict x from x plus noise."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., torch.optim.Optimizer], noise: bool) -> None:
        super().__init__()
        self.net, self.make_optimizer, self.noise = net, optimizer, noise

    def _loss(self, batch: list[Tensor], noise: bool) -> Tensor:
        [x] = batch
        x = x.clone()
        x[:, 0] /= 100
        return (self.net(x + torch.randn_like(x) if noise else x) - x).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch, self.noise)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch, False), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch, False), sync_dist=True)


class Template(Module):
    """The module of the usual template: its network and its optimiser are among its hyperparameters."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., torch.optim.Optimizer], noise: bool) -> None:
        super().__init__(net, optimizer, noise)
        self.save_hyperparameters(logger=False)


def train(cfg: DictConfig) -> None:
    """Build everything from the configuration, train, report."""
    pl.seed_everything(cfg.seed, workers=True)
    make = hydra.utils.instantiate
    data = make(cfg.data)
    module = make(cfg.model, net=make(cfg.net), optimizer=make(cfg.optimizer))
    callbacks = [make(node) for node in cfg.callbacks.values() if node]
    loggers = [make(node) for node in cfg.logger.values() if node]
    trainer = make(cfg.trainer, callbacks=callbacks, logger=loggers)
    trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path)
    if cfg.get("test"):
        trainer.test(module, datamodule=data, ckpt_path=cfg.test)


@hydra.main(version_base="1.3", config_path=".", config_name="bare")
def main(cfg: DictConfig) -> Any:
    """Train; an error is logged and raised again, as the template does."""
    Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
    try:
        train(cfg)
    except Exception:
        log.exception("")
        raise


if __name__ == "__main__":
    main()
