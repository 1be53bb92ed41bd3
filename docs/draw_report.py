"""Draw the pictures of docs/report.md: from a training on scikit-learn's digits, and the page in a browser.

python docs/draw_report.py                # trains (a minute or two); needs the extra `examples`
python docs/draw_report.py --browser      # also docs/report.png, with Playwright and a Chromium of the system
"""

import argparse
import re
import shutil
import tempfile
from importlib import resources
from pathlib import Path

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import RATE, SMALL, train
from lightning_bsscale.report.figure import Figure, axes_of
from lightning_bsscale.report.noise_picture import noise_figure
from lightning_bsscale.report.page import make_page
from lightning_bsscale.report.rate_picture import learning_rate_figure
from lightning_bsscale.report.read_run import read_run
from lightning_bsscale.report.worth_picture import worth_figure

DOCS = Path(__file__).parent
POINTS = 200
KEYS = 18  # height of a line of the legend


def style() -> str:
    """Return the page's style with the colours of a light page, which is what a picture in a text has."""
    page = resources.files("lightning_bsscale.report").joinpath("style.css").read_text(encoding="utf-8")
    light = re.sub(r"light-dark\((#\w+), #\w+\)", r"\1", page)
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", light))
    rules = re.findall(r"^(?:\.picture [^{]*|\.[\w., -]+) \{[^}]*\}", light, flags=re.MULTILINE)
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], "\n".join(rules))


def alone(figure: Figure) -> str:
    """Return a figure's first picture with its legend, as a separate file."""
    picture = figure.pictures[0]
    height = int(re.search(r'viewBox="0 0 720 (\d+)"', picture)[1])
    keys = []
    for place, (cls, words) in enumerate(figure.legend):
        left, top = 72 + place % 2 * 320, height + 14 + place // 2 * KEYS
        shape = f'<path class="{cls}" d="M{left} {top}h26"/>'
        if cls in {"band", "veil", "span"}:
            shape = f'<rect class="{cls}" x="{left}" y="{top - 5}" width="26" height="10"/>'
        elif cls == "mark":
            shape = f'<circle class="{cls}" cx="{left + 13}" cy="{top}" r="4"/>'
        keys.append(f'{shape}<text x="{left + 34}" y="{top + 4}">{words}</text>')
    whole = height + KEYS * -(-len(figure.legend) // 2) + 8
    ground = f'<rect width="720" height="{whole}" fill="#ffffff"/>'
    drawn = picture.replace(f'viewBox="0 0 720 {height}"', f'viewBox="0 0 720 {whole}" font-family="sans-serif"')
    drawn = drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    drawn = drawn.replace("</desc>", f"</desc><style>{style()}</style>{ground}", 1)
    return drawn.replace("</svg>", f"{''.join(keys)}</svg>").replace("><", ">\n<") + "\n"


def screenshot(page: Path, picture: Path) -> None:
    """Take a picture of the top of the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        shown = browser.new_page(viewport={"width": 900, "height": 1000}, color_scheme="light")
        shown.goto(page.as_uri())
        shown.screenshot(path=picture)
        browser.close()


def main() -> None:
    """Train, draw, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal", type=Path, help="the journal of such a training; default: train now")
    parser.add_argument("--browser", action="store_true", help="also take a picture of the page")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        journal = arguments.journal or Path(folder) / "bsscale.jsonl"
        if arguments.journal is None:
            scaler = BatchSizeScaler(record=journal)
            train("digits", batch_size=SMALL, rate=RATE, seed=0, epochs=25, callbacks=[scaler])
        run = read_run(journal)
        for name, draw in (("noise", noise_figure), ("rate", learning_rate_figure), ("worth", worth_figure)):
            (DOCS / f"report_{name}.svg").write_text(
                alone(draw(run, name, POINTS, axes_of([run])[:1])), encoding="utf-8"
            )
        if arguments.browser:
            page = Path(folder) / "report.html"
            page.write_text(make_page([run]), encoding="utf-8")
            screenshot(page, DOCS / "report.png")
    print("written: docs/report_noise.svg, docs/report_rate.svg, docs/report_worth.svg")


if __name__ == "__main__":
    main()
