"""Prints the oldest version of every dependency that the installed package declares, as pip's constraints.

`make test-oldest` installs these, and runs the tests with them.
"""

import re
import sys
from importlib.metadata import requires

NAME_AND_FLOOR = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?[^;]*?>=\s*([0-9.]+)")


def oldest(requirements, left_out=frozenset()):
    """`name==floor` of each requirement with a floor, but for extras named in `left_out`."""
    kept = [line for line in requirements if not any(f"'{extra}'" in line.replace('"', "'") for extra in left_out)]
    found = (NAME_AND_FLOOR.match(line) for line in kept)
    return sorted({f"{one[1].lower()}=={one[2]}" for one in found if one})


if __name__ == "__main__":
    print("\n".join(oldest(requires("lightning-bsscale"), left_out=set(sys.argv[1:]))))
