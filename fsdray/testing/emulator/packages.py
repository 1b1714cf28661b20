"""Where ministack is: installed by pip once, in a directory of its own below the cache.

It is kept apart from the environment that fsdray is in, since it pins the botocore that it needs.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
import tempfile
from pathlib import Path

from fsdray.packages import Target, command, locked, run_pip, telling

MINISTACK = "ministack==1.5.33"
"""What is installed: `guest` and `mirror` know its insides."""


def installed(cache: Path, requirement: str = MINISTACK) -> Path:
    """The directory to import it from, made first where it is not there yet.

    Parameters
    ----------
    cache : `Settings.cache_directory`.

    Raises
    ------
    SettingsError
        where pip fails, with its last lines.
    """
    place = cache / "emulator"
    machine = sysconfig.get_config_var("SOABI")  # a home directory may serve several
    key = hashlib.sha256(repr((machine, requirement)).encode()).hexdigest()[:32]
    folder = place / key
    if folder.is_dir():
        return folder
    place.mkdir(parents=True, exist_ok=True)
    with telling(f"fsdray: installing {requirement} with pip"), locked(place / f"{key}.lock"):
        if not folder.is_dir():  # made meanwhile by another process
            with tempfile.TemporaryDirectory(prefix=f".{key}-", dir=place) as making:
                made = Path(making, "packages")
                wanted = Path(making, "requirements.txt")
                wanted.write_text(requirement)
                target = Target(Target.here().python)
                run_pip(
                    command(target, wanted, made),
                    f"pip could not install {requirement}, which emulates AWS",
                    os.getcwd(),
                    "the emulator",
                    "",
                )
                made.rename(folder)
    return folder
