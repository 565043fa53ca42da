"""Draw docs/report.png: the top of a report, as a browser shows it, light and dark side by side.

fedmerge simulate --set run.output=runs/picture     # the main job
python docs/report_picture.py runs/picture          # wants Chromium and Pillow
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).with_name("report.png")
WIDTH, HEIGHT = 1000, 1096
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    """Write the picture; the exit status."""
    reader = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    reader.add_argument("run", type=Path, help="a run's folder")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("there is no Chromium here", file=sys.stderr)
        return 1
    draw(reader.parse_args().run, browser, TARGET)
    return 0


def draw(run: Path, browser: str, target: Path) -> None:
    """Show the run's report in both themes, and put the pictures side by side."""
    from PIL import Image

    from fedmerge.study.report import html_of, page_of, read_sources

    page = html_of(page_of(read_sources([run])))
    with tempfile.TemporaryDirectory() as name:
        both = Image.new("RGB", (2 * WIDTH, HEIGHT))
        for place, theme in enumerate(("light", "dark")):
            shot = Path(name) / f"{theme}.png"
            _shoot(browser, page.replace("<html ", f'<html data-theme="{theme}" ', 1), shot)
            with Image.open(shot) as picture:
                both.paste(picture.convert("RGB").crop((0, 0, WIDTH, HEIGHT)), (place * WIDTH, 0))
        both.save(target, optimize=True)


def _shoot(browser: str, page: str, shot: Path) -> None:
    """Without its script, which would choose the theme anew."""
    bare = page.partition("<script>")[0]
    file = shot.with_suffix(".html")
    file.write_text(bare, encoding="utf-8")
    profile = f"--user-data-dir={shot.with_suffix('')}"
    size = f"--window-size={WIDTH},{HEIGHT}"
    command = [browser, *FLAGS, profile, size, f"--screenshot={shot}", file.as_uri()]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
