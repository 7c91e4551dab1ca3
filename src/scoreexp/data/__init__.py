"""Data sets behind one DataModule; values are in [-1, 1] from here on."""

from typing import TYPE_CHECKING

from scoreexp import on_first_use

if TYPE_CHECKING:
    from scoreexp.data.celeba import CelebA
    from scoreexp.data.cifar10 import CIFAR10
    from scoreexp.data.errors import DataError
    from scoreexp.data.ffhq import FFHQ
    from scoreexp.data.folder import Folder
    from scoreexp.data.mnist import MNIST
    from scoreexp.data.module import DataModule
    from scoreexp.data.photo import Photo
    from scoreexp.data.split import Split, ValueStatistics
    from scoreexp.data.swiss_roll import SwissRoll
else:  # pictures are read and written without Lightning
    __getattr__ = on_first_use(
        __name__,
        {
            "celeba": ["CelebA"],
            "cifar10": ["CIFAR10"],
            "errors": ["DataError"],
            "ffhq": ["FFHQ"],
            "folder": ["Folder"],
            "mnist": ["MNIST"],
            "module": ["DataModule"],
            "photo": ["Photo"],
            "split": ["Split", "ValueStatistics"],
            "swiss_roll": ["SwissRoll"],
        },
    )

__all__ = [
    "CIFAR10",
    "FFHQ",
    "MNIST",
    "CelebA",
    "DataError",
    "DataModule",
    "Folder",
    "Photo",
    "Split",
    "SwissRoll",
    "ValueStatistics",
]
