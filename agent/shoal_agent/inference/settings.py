"""How a worker runs models. Values only: the engine hands them to the worker, whichever kind it is."""

from dataclasses import dataclass
from typing import Literal

CPU: str = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the board's operator may choose.

    Attributes:
        kind: "process": a model that crashes takes only the worker with it. "thread": in the agent itself, which
            spares a second interpreter and shares every crash.
        threads: of ONNX Runtime within one operator; 0: as many as the worker may have cores.
        nice: added to the worker's niceness, so that models yield to everything else.
        loading_nice: added while the worker starts and loads, up to its first batch, for one that starts beside
            another that serves.
        cpus: the cores that the worker may use; none: all.
        providers: ONNX Runtime's execution providers, the preferred first; the CPU always comes last.
        run_timeout_s: a batch that takes longer is stopped.
        optimised_dir: where large models are kept as ONNX Runtime has optimised them; none: nowhere.
        trial_cpu_s: more than 0: the process judges one release, confined, and ends after so much processor time.
    """

    kind: Literal["process", "thread"] = "process"
    threads: int = 1
    nice: int = 0
    loading_nice: int = 0
    cpus: tuple[int, ...] = ()
    providers: tuple[str, ...] = (CPU,)
    run_timeout_s: float = 10.0
    optimised_dir: str = ""
    trial_cpu_s: int = 0
