"""What the host's environments run: this Python and AWS's runtime client, and what they import.

As a rule functions find what is installed here, so that packages are small and made at once. In
isolation they find what they would in Lambda, and a package has to be whole.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

CLIENT = "awslambdaric"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def command(isolated: Path | None) -> list[str]:
    """How the runtime client is started; the handler's name follows.

    Parameters
    ----------
    isolated : what `lay_out` made, or None for an environment that is not isolated.
    """
    # Without `site` neither site-packages nor editable installs are on the path.
    options = [] if isolated is None else ["-S"]
    return [sys.executable, *options, "-m", CLIENT]


def lay_out(place: Path) -> Path:
    """Make a directory that holds the runtime client and what it requires, and nothing else."""
    place.mkdir()
    waiting = [CLIENT]
    for name in waiting:  # it grows as it is read
        found = metadata.distribution(name)
        for line in found.requires or ():
            named = _NAME.match(line)
            if "extra ==" not in line and named is not None and named[0] not in waiting:
                waiting.append(named[0])
        tops = {file.parts[0] for file in found.files or () if file.parts[0] != ".."}
        for top in sorted(tops - {"__pycache__"}):
            (place / top).symlink_to(str(found.locate_file(top)))
    return place
