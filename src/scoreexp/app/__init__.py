"""The commands: the only files that import Hydra, OmegaConf or W&B."""
