"""AWS Lambda on this machine: AWS's own runtime client over the real APIs, in separate processes.

`LambdaHost` serves Lambda's Invoke and control APIs to real clients through
``AWS_ENDPOINT_URL_LAMBDA``. Functions run in environments as Lambda's: exclusive, reused, frozen
between calls; memory, time, payloads and concurrency are limited, and what fails fails with the
service's own payloads. It serves no other AWS service.

Modules: `server` takes requests and `routes` names them; `control` changes `functions`, from
`packages`; `invoke` has calls run by `scheduler` in an `environment`, a process that `processes`
starts through the `guardian`, which leaves nothing behind.

Where AWS's runtime interface emulator (RIE) differs from the service, the host follows the service:

- a call that takes too long gives ``Sandbox.Timedout`` as JSON; RIE answers a bare sentence;
- an environment that dies in its init gives ``Runtime.ExitError`` with the call's id; RIE answers
  nothing;
- function errors are an HTTP 200 with ``X-Amz-Function-Error``; RIE answers 502 to some;
- invalid JSON is refused before anything runs; RIE hands it to the function;
- the REPORT line gives init, memory and what is billed as measured; RIE makes them up;
- memory, payloads of requests, concurrency and chains of calls are limited; RIE limits none.

Where the host differs from the service:

- ``/tmp`` is the machine's; each environment has a temporary directory of its own in ``TMPDIR``;
- the share of a processor does not follow the memory; environments see the machine's cores;
- an environment that died or ran out of time is not reused, its ``/tmp`` neither;
- a new function is active at once, though it says ``Pending`` where Lambda does;
- every ``python3.x`` runs with the interpreter that runs the host, on this machine's architecture;
- environments are not limited in how fast they multiply, nor control requests in their rate;
- memory is looked at every 10 ms or so, and after each call; what may be reclaimed does not count;
- there are no images, layers, streams, destinations, event sources, SnapStart or function URLs;
  what asks for one is refused, but for SnapStart and what only a real account can act on.
"""

from __future__ import annotations

from fsdray.testing.lambda_host.host import LambdaHost
from fsdray.testing.lambda_host.limits import HostSettings

__all__ = ["HostSettings", "LambdaHost"]
