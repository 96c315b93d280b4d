"""`hebm-demo` in a process of its own, and Debian's Chromium to use it with.

Nothing outside the loopback is asked for: the browser's own errands are switched off.
"""

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = float(os.environ.get("HEBM_DEMO_PATIENCE", "60"))  # seconds for one action
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
)


def missing() -> str | None:
    """What a browser test lacks here; None if nothing."""
    programs = {"chromium": "chromium", "chromedriver": "chromium-driver"}
    lacking = [package for program, package in programs.items() if not shutil.which(program)]
    return f"the Debian packages {', '.join(lacking)} are not installed" if lacking else None


@contextlib.contextmanager
def serve(*words: str) -> Iterator[str]:
    """The address of a page; the process ends as it would by `kill`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "hebm_sample.demo", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"http://\S+", line)
            if found is None:
                errors.seek(0)
                raise AssertionError(f"no page was served: {line}{errors.read()}")
            yield found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
                process.communicate()
        assert process.returncode == 0


@contextlib.contextmanager
def visitor(address: str, size: tuple[int, int] = (1280, 900)) -> Iterator["Visitor"]:
    """Someone who has opened the page; what they save lies in a folder that goes with them."""
    with tempfile.TemporaryDirectory(prefix="hebm-visitor-") as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*_FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        options.add_experimental_option(
            "prefs", {"download.default_directory": folder, "download.prompt_for_download": False}
        )
        service = webdriver.ChromeService(str(shutil.which("chromedriver")))
        driver = webdriver.Chrome(options=options, service=service)
        try:
            found = Visitor(driver, Path(folder))
            found.resize(*size)
            driver.get(address)
            found.until(lambda: found.status == "ready")
            yield found
        finally:
            driver.quit()


class Visitor:
    """What a person can do with the page."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self.driver, self.folder = driver, folder

    def resize(self, width: int, height: int) -> None:
        """A window has a least width; the page's own can be less, as on a telephone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        WebDriverWait(self.driver, seconds, 0.1).until(lambda _: condition())

    def js(self, code: str, *arguments: object) -> object:
        return self.driver.execute_script(code, *arguments)

    def find(self, selector: str):
        """The first such element, as soon as there is one."""
        self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector))
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        self.until(lambda: element.is_displayed() and element.is_enabled())
        element.click()

    @property
    def status(self) -> str:
        """The line above the images."""
        code = "const e = document.querySelector('.hebm-status'); return e ? e.textContent : ''"
        return str(self.js(code))

    def do(self, selector: str) -> str:
        """Click, and wait for what comes of it; the line above the images."""
        self.js("document.querySelector('.hebm-status').dataset.old = 1")
        self.click(selector)
        return self.wait()

    def wait(self) -> str:
        """Until the line above the images is new and final."""
        code = (
            "const e = document.querySelector('.hebm-status:not([data-old])');"
            "return e !== null && e.textContent !== 'sampling'"
        )
        self.until(lambda: self.js(code))
        return self.status

    def tab(self, name: str) -> None:
        self.js(
            "[...document.querySelectorAll('[role=tab]')]"
            ".find(e => e.textContent.trim() === arguments[0]).click()",
            name,
        )

    def write(self, selector: str, text: str) -> None:
        """Replace what a box holds."""
        element = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        self.until(element.is_displayed)
        element.send_keys(Keys.CONTROL, "a")
        element.send_keys(text, Keys.TAB)

    def choose(self, selector: str, text: str) -> None:
        """An entry of a dropdown."""
        self.click(f"{selector} input")
        entry = f"//*[@role='option'][@aria-label='{text}']"
        self.until(lambda: self.driver.find_elements(By.XPATH, entry))
        self.driver.find_element(By.XPATH, entry).click()

    def give(self, path: Path) -> str:
        """Upload a file."""
        if not self.js("return document.querySelector('#hebm-upload') !== null"):
            self.click("#hebm-own button")
        self.js("document.querySelector('.hebm-status').dataset.old = 1")
        self.find("#hebm-upload input[type=file]").send_keys(str(path))
        return self.wait()

    def paint(self, *places: tuple[float, float]) -> None:
        """Draw a line through places of the large image, (0, 0) to (1, 1)."""
        canvas = self.find(".hebm-big canvas")
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
        self.until(lambda: canvas.size["width"])
        size = canvas.size
        at = [((x - 0.5) * size["width"], (y - 0.5) * size["height"]) for x, y in places]
        action = ActionChains(self.driver, 20).move_to_element_with_offset(canvas, *at[0])
        action.click_and_hold()
        for place in at[1:]:
            action.move_to_element_with_offset(canvas, *place)
        action.release().perform()

    @property
    def images(self) -> list[bytes]:
        """The files of all small images; of the large one if there is but one."""
        code = (
            "const small = [...document.querySelectorAll('.hebm-thumbs img')];"
            "const all = small.length ? small : [document.querySelector('.hebm-big img')];"
            "return all.map(e => e.src.split(',')[1])"
        )
        return [base64.b64decode(text) for text in self.js(code)]

    def save(self, link: str = ".hebm-one") -> tuple[str, bytes]:
        """Save the large image, or what another link gives; the file's name and content."""
        self.click(link)

        def files() -> list[Path]:
            found = [p for ending in ("png", "zip") for p in self.folder.glob(f"*.{ending}")]
            return [p for p in found if p.stat().st_size]

        self.until(files)
        (path,) = files()
        data = path.read_bytes()
        path.unlink()
        return path.name, data

    def lines(self, language: str) -> str:
        """What stands in one of the boxes of code."""
        code = (
            f"return [...document.querySelectorAll('#hebm-{language} .cm-line')]"
            ".map(e => e.textContent).join('\\n')"
        )
        if not self.js("return document.querySelector('#hebm-python .cm-line') !== null"):
            self.click("#hebm-lines button")
        self.until(lambda: self.js(code))
        return str(self.js(code))

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        code = "return document.documentElement.scrollWidth - window.innerWidth"
        return int(str(self.js(code)))
