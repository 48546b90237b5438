"""Carries out a recipe in child processes that are killed, until one gets to the end.

Run as a script: `python interrupted.py RECIPE FOLDER SEED`. Every child works on the run until it
is killed: at a random moment, or in the middle of a random write, of which only a part then
reaches the disk. Prints how many were killed each way.
"""

import os
import random
import signal
import stat
import sys
import time
from pathlib import Path

import torch

from conescope.experiments.session import run_experiment
from conescope.training.recipe_reading import load_recipe

WANTED = 12


def die_in_a_write(after: int) -> None:
    """From now on, the write number `after` loses its second half and kills the process."""
    sync, left = os.fsync, [after]

    def torn(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                os.truncate(f"/proc/self/fd/{descriptor}", status.st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = torn


def main(recipe_file: str, folder: str, seed: str) -> None:
    torch.set_num_threads(1)
    recipe, chance = load_recipe(recipe_file), random.Random(int(seed))
    killed = {"moment": 0, "write": 0}
    while True:
        way = min(killed, key=lambda name: killed[name])
        is_last = sum(killed.values()) >= WANTED
        writes, delay = chance.randrange(2, 12), chance.uniform(0.0, 0.3)
        child = os.fork()
        if child == 0:
            if way == "write" and not is_last:
                die_in_a_write(writes)
            os._exit(0 if run_experiment(recipe, Path(folder), command="test") else 1)
        if way == "moment" and not is_last:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            killed[way] += 1
        elif os.WEXITSTATUS(status):
            sys.exit("the run failed")
        elif is_last or way == "write":
            break
    sys.stdout.write(f"{killed['moment']} {killed['write']}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
