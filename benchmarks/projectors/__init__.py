"""The projectors, by the names that the command line knows them by."""

from benchmarks.projectors.base import Projector
from benchmarks.projectors.bergson_library import Bergson, BergsonWide
from benchmarks.projectors.dattri_library import DattriFormed, FactGraSS, LoGra, LoGraWide
from benchmarks.projectors.own import Conescope, ConescopeLinear, PlainPass
from benchmarks.projectors.trak_library import TRAK

PROJECTORS: dict[str, type[Projector]] = {
    "pass": PlainPass,
    "conescope": Conescope,
    "conescope-linear": ConescopeLinear,
    "bergson": Bergson,
    "bergson-default": BergsonWide,
    "logra": LoGra,
    "logra-default": LoGraWide,
    "factgrass": FactGraSS,
    "dattri": DattriFormed,
    "trak": TRAK,
}
