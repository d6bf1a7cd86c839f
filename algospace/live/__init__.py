"""The live path as bus components over the compiled steps of history; `build_chain` puts them together."""

from algospace.live.bar_generator import DEFAULT_GRACE_NS, BarGenerator
from algospace.live.chain import Chain, WarmUp, build_chain
from algospace.live.indicator_engine import BarStream, IndicatorEngine
from algospace.live.matrix_assembler import LiveMatrices, MatrixComponent
from algospace.live.synergy_detector import SynergyDetector

__all__ = [
    "DEFAULT_GRACE_NS",
    "BarGenerator",
    "BarStream",
    "Chain",
    "IndicatorEngine",
    "LiveMatrices",
    "MatrixComponent",
    "SynergyDetector",
    "WarmUp",
    "build_chain",
]
