"""Every fault of `parity faults`, in the order in which they are run."""

from parity.faults.attention import ATTENTION_FAULTS
from parity.faults.backward import BACKWARD_FAULTS
from parity.faults.decoding import DECODING_FAULTS
from parity.faults.fault import Fault
from parity.faults.layers import LAYER_FAULTS
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
