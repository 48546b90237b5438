"""The contenders, by the names that the command line knows them by."""

from benchmarks.contenders.asdl import ASDL
from benchmarks.contenders.backpack import BackPACK
from benchmarks.contenders.base import Contender
from benchmarks.contenders.neural_tangents import NeuralTangents
from benchmarks.contenders.nngeometry import NNGeometry
from benchmarks.contenders.own import Conescope
from benchmarks.contenders.torch_func import TorchFunc, Tutorial
from benchmarks.contenders.vivit import ViViT

CONTENDERS: dict[str, type[Contender]] = {
    "conescope": Conescope,
    "tutorial": Tutorial,
    "torch-func": TorchFunc,
    "nngeometry": NNGeometry,
    "backpack": BackPACK,
    "vivit": ViViT,
    "asdl": ASDL,
    "neural-tangents": NeuralTangents,
}
