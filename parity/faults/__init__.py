"""A catalogue of port bugs, to test the tests with: `parity faults`."""

from parity.faults.attention import ATTENTION_FAULTS
from parity.faults.backward import BACKWARD_FAULTS
from parity.faults.decoding import DECODING_FAULTS
from parity.faults.fault import Fault, Patch
from parity.faults.layers import LAYER_FAULTS
from parity.faults.run import Outcome, run_faults, trace_fault
from parity.faults.trainers import trace_training
from parity.faults.training import TRAINING_FAULTS, TrainingFault
from parity.faults.weights import WEIGHT_FAULTS

CATALOGUE: list[Fault | TrainingFault] = [
    *WEIGHT_FAULTS,
    *LAYER_FAULTS,
    *ATTENTION_FAULTS,
    *DECODING_FAULTS,
    *BACKWARD_FAULTS,
    *TRAINING_FAULTS,
]

__all__ = [
    "CATALOGUE",
    "Fault",
    "Outcome",
    "Patch",
    "TrainingFault",
    "run_faults",
    "trace_fault",
    "trace_training",
]
