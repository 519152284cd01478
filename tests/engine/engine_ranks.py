"""A command for the launcher's tests: ranks that train the toy, or fail in a chosen way."""

import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from beit.engine.distribution import RankError, launch, process_group, restarted
from beit.engine.failure import Diverged
from beit.errors import Interrupted, UserError
from engine.engine_toy import SETTINGS, run_toy


def main(mode: str, folder: str) -> int:
    if "RANK" not in os.environ:
        return parent(mode, folder)
    with process_group("cpu") as world:
        if mode == "mistake" and world.rank == 1:
            raise UserError("the second rank does not like it")
        run_toy(Path(folder), replace(SETTINGS, accumulate=2), hook=lambda done: act(mode, done))
    return 0


def act(mode: str, done: int) -> None:
    rank = int(os.environ["RANK"])
    if mode == "die" and done == 6 and rank == 1 and not restarted():
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "diverge" and done == 6:
        raise Diverged("the loss is not a number")
    if mode == "bug" and done == 6 and rank == 0:
        raise KeyError("a bug")
    if mode == "alone" and done == 6 and rank == 1:
        raise UserError("the second rank has no memory left")
    told = {"term": signal.SIGTERM, "int": signal.SIGINT, "kill": signal.SIGKILL}
    if mode in told and done >= 6 and rank == 0:
        with suppress(ProcessLookupError):
            os.kill(int(os.environ["TOY_PARENT"]), told[mode])
        time.sleep(0.5)


def parent(mode: str, folder: str) -> int:
    os.environ["TOY_PARENT"] = str(os.getpid())
    try:
        launch(2, [sys.executable, *sys.argv], restarts=2 if "--restart" in sys.argv else 0)
    except UserError as error:
        print(f"user: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"interrupted: {stop}", file=sys.stderr)
        return 128 + int(getattr(stop, "signal", 0))
    except RankError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
