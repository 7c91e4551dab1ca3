"""Data sets behind one DataModule; values are in [-1, 1] from here on."""

from typing import TYPE_CHECKING

from scoreexp import on_first_use

if TYPE_CHECKING:
    from scoreexp.data.celeba import CelebA as CelebA
    from scoreexp.data.cifar10 import CIFAR10 as CIFAR10
    from scoreexp.data.crops import Crops as Crops
    from scoreexp.data.cubes import Cubes as Cubes
    from scoreexp.data.errors import DataError as DataError
    from scoreexp.data.ffhq import FFHQ as FFHQ
    from scoreexp.data.folder import Folder as Folder
    from scoreexp.data.mnist import MNIST as MNIST
    from scoreexp.data.mnist import FashionMNIST as FashionMNIST
    from scoreexp.data.module import DataModule as DataModule
    from scoreexp.data.photo import Photo as Photo
    from scoreexp.data.spectrogram import CompressedSTFT as CompressedSTFT
    from scoreexp.data.speech import Speech as Speech
    from scoreexp.data.split import Split as Split
    from scoreexp.data.split import ValueStatistics as ValueStatistics
    from scoreexp.data.swiss_roll import SwissRoll as SwissRoll

on_first_use(__name__)  # images are read and written without Lightning
