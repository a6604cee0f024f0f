"""A real browser in a container, and what people do with it on the system's three pages."""

import contextlib
import functools
import http.server
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from runners import PATIENCE, docker, wait_until
from support import ROOT, STAGES

PER_BATCH = [name for name in STAGES if STAGES[name].per_batch]
IMAGE = "heart-test/browser:dev"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--window-size=1400,900")  # fmt: skip


@contextmanager
def browser(screenshots: Path) -> "Iterator[Browser]":
    """Run Chromium on this machine's own network, where the pages are."""
    subprocess.run(["docker", "buildx", "build", "--quiet", "--load", f"--tag={IMAGE}",
                    "--build-arg=PYTHON_IMAGE=heart-base/python:dev", str(ROOT / "tests" / "browser")],
                   check=True, capture_output=True)  # fmt: skip
    port = "9515"
    name = docker("run", "--detach", "--rm", "--init", "--network=host", IMAGE, f"--port={port}")
    try:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in FLAGS:
            options.add_argument(flag)
        wait_until(lambda: "started successfully" in docker("logs", name))
        driver = webdriver.Remote(f"http://127.0.0.1:{port}", options=options)
        try:
            yield Browser(driver, screenshots)
        finally:
            driver.quit()
    finally:
        docker("rm", "--force", name)


class Browser:
    """What a person does and sees."""

    def __init__(self, driver: Any, screenshots: Path) -> None:
        self.driver = driver
        self.screenshots = screenshots

    def wait(self, seconds: float) -> Any:
        """Wait, and look again where a page has just drawn itself anew."""
        return WebDriverWait(
            self.driver, seconds, 0.2, ignored_exceptions=[StaleElementReferenceException, NoSuchElementException]
        )

    @contextmanager
    def looking_at(self, name: str) -> Iterator[None]:
        """Keep a picture of the page as it is in the end, whether the test finds there what it looks for or not."""
        try:
            yield
        finally:
            self.driver.save_screenshot(str(self.screenshots / f"{name}.png"))

    def find(self, selector: str) -> Any:
        """Return the first visible element, once it is there."""

        def visible(driver: Any) -> Any:
            return next((e for e in driver.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()), None)

        return self.wait(PATIENCE).until(visible, f"no {selector} on {self.driver.current_url}")

    def text(self, wanted: str) -> Any:
        """Return the first visible element with a text of its own, once it is there."""
        path = f"//*[text()[contains(., '{wanted}')]]"

        def visible(driver: Any) -> Any:
            return next((e for e in driver.find_elements(By.XPATH, path) if e.is_displayed()), None)

        return self.wait(PATIENCE).until(visible, f"no text {wanted!r} on {self.driver.current_url}")

    def airflow(self, address: str, password: str, run: str) -> None:
        """Log in to Airflow and look at a run of etl_dag: every stage's square in the grid is green."""
        self.driver.get(f"{address}/dags/etl_dag/runs/{run}")
        self.log_in("username", "heart", password)
        self.find('[data-testid="expand-all-button"]').click()
        green = self.color('//*[@data-testid="state-badge" or contains(@class, "badge")][normalize-space(.)="Success"]')
        for stage in PER_BATCH:
            here = f'//*[@data-testid="grid-{run}-deliver.{stage}"]//*[@data-testid="task-state-badge"]'
            assert self.color(here) == green, f"{stage} is not green"
        self.text("deliver.load")

    def mlflow(self, address: str, experiment: str, run: str, plot: str) -> None:
        """Look at a run's plot in MLflow."""
        self.driver.get(address)  # with the login, which the browser keeps; pages of such an address can't fetch anything
        plain = re.sub("//.*@", "//", address)
        self.driver.get(f"{plain}/#/experiments/{experiment}/runs/{run}/artifacts/{plot}")
        self.find('[data-component-id="mlflow.assistant.chat_panel.close"]').click()
        image = self.find(f"img[alt='{plot}'][src^='blob:']")
        self.wait(PATIENCE).until(lambda _: image.get_property("naturalWidth") > 100, "the plot is empty")

    def pgadmin(self, address: str, password: str) -> list[str]:
        """Log in to pgAdmin and open the warehouse's tree; return the names of its tables."""
        self.driver.get(address)
        self.log_in("email", "heart@example.com", password)
        path = ("heart-pipeline", "heart warehouse", "Databases", "heart", "Schemas", "heart_analysis", "Tables")
        # From the root each time: a server can close again, with all that is in it, when its connection is ready.
        self.wait(PATIENCE).until(
            lambda _: all(self.opened(depth, name) for depth, name in enumerate(path, start=1)), "the tree does not open"
        )
        names = self.driver.find_elements(By.CSS_SELECTOR, f'[data-depth="{len(path) + 1}"] .file-name')
        return [element.text for element in names]

    def report(self, page: Path, width: int, dark: bool = False) -> None:
        """Look at a report from this wide a window: everything fits, every picture is drawn."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(page.parent))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            self.driver.get(f"http://127.0.0.1:{server.server_port}/{page.name}")
            self.text("Not for use on patients")
            server.shutdown()
        assert self.driver.execute_script("return document.documentElement.scrollWidth") <= width, "it is cut off"
        pictures = self.driver.find_elements(By.CSS_SELECTOR, "figure img")
        assert len(pictures) == 9 and all(picture.get_property("naturalWidth") > 100 for picture in pictures)
        light = self.driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
        assert (sum(map(int, re.findall(r"\d+", light)[:3])) < 100) == dark

    def opened(self, depth: int, name: str) -> bool:
        """Return whether a node of pgAdmin's tree shows what is in it; click on its arrow where it does not.

        A server that was opened before it was connected stays open and empty: another click closes it, one more opens it.
        """
        node = f"//div[@data-depth='{depth}'][.//span[@class='file-name'][normalize-space(.)='{name}']]"
        deeper = (By.CSS_SELECTOR, f'[data-depth="{depth + 1}"]')

        def shown(_: Any) -> bool:
            return any(element.is_displayed() for element in self.driver.find_elements(*deeper))

        if shown(None):
            return True
        self.driver.find_element(By.XPATH, f"{node}//i[contains(@class, 'directory-toggle')]").click()
        with contextlib.suppress(TimeoutException):
            return self.wait(8).until(shown)
        return False

    def color(self, path: str) -> str:
        """Return the background of an element, once it is there."""
        element = self.wait(PATIENCE).until(lambda driver: driver.find_element(By.XPATH, path), f"no {path}")
        return element.value_of_css_property("background-color")

    def log_in(self, field: str, user: str, password: str) -> None:
        """Fill in a form of a name and a password."""
        self.find(f"input[name={field}]").send_keys(user)
        self.find("input[name=password]").send_keys(password, Keys.ENTER)
