"""The platform that is not there: services in virtual time, on a network drawn from a seed.

`clock` is the event loop whose time is virtual, `network` the model of latencies and rates,
`faults` what may go wrong, `world` what all simulated services share. A program of coroutines runs
here through `fsdray.testing.simulate`; plain code cannot, since its own time is real.
"""

from fsdray.backends.simulated.clock import VirtualLoop
from fsdray.backends.simulated.faults import Death, Faults
from fsdray.backends.simulated.functions import Environments, SimulatedFunctions
from fsdray.backends.simulated.messages import Inboxes, SimulatedMessages
from fsdray.backends.simulated.network import EXPRESS, Network
from fsdray.backends.simulated.objects import SimulatedObjects, Store
from fsdray.backends.simulated.trace import Trace
from fsdray.backends.simulated.world import Node, World
from fsdray.costs.latency import Latency

__all__ = [
    "EXPRESS",
    "Death",
    "Environments",
    "Faults",
    "Inboxes",
    "Latency",
    "Network",
    "Node",
    "SimulatedFunctions",
    "SimulatedMessages",
    "SimulatedObjects",
    "Store",
    "Trace",
    "VirtualLoop",
    "World",
]
