"""Write into docs/command_line.md what its commands print.

Run `python docs/run_command_line.py` after an output has changed; a test asks for it. Its journals are simulated runs.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "command_line.md"
COMMAND = re.compile(r"^```bash\n(bsscale [^\n]*)\n```\n(?:\n```text\n(.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


def prepare(folder: Path) -> None:
    """Write the page's module and its two journals into a folder that is on the path."""
    from tests.helpers.written_runs import write_run

    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    (folder / "my_policies.py").write_text(code, encoding="utf-8")
    from my_policies import Patient

    write_run(folder / "run.jsonl", 1600, measure_every=8)
    write_run(folder / "own.jsonl", 1600, policy=Patient(1500))


def printed(command: str) -> str:
    """Run a command in the current folder."""
    from lightning_bsscale.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(shlex.split(command)[1:])
    assert status == 0, f"{command}: {status}"
    return out.getvalue()


def main() -> None:
    def shown(found: re.Match[str]) -> str:
        if found[2] is None:
            return found[0]
        return f"```bash\n{found[1]}\n```\n\n```text\n{printed(found[1])}```"

    with tempfile.TemporaryDirectory() as folder:
        sys.path[:0] = [folder, str(ROOT)]
        os.chdir(folder)
        prepare(Path(folder))
        PAGE.write_text(COMMAND.sub(shown, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        os.chdir(ROOT)


if __name__ == "__main__":
    main()
