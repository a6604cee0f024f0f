"""A real browser in a container, and what people do with it on the system's three pages."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from runners import docker, wait_until
from support import ROOT

IMAGE = "heart-test/browser:dev"
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--window-size=1400,900")  # fmt: skip
PATIENCE = 60


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

    def shoot(self, name: str) -> None:
        """Keep a picture of the page."""
        self.driver.save_screenshot(str(self.screenshots / f"{name}.png"))

    def find(self, selector: str) -> Any:
        """Return the first visible element, once it is there."""

        def visible(driver: Any) -> Any:
            return next((e for e in driver.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()), None)

        return WebDriverWait(self.driver, PATIENCE, 0.2).until(visible, f"no {selector} on {self.driver.current_url}")

    def text(self, wanted: str) -> Any:
        """Return the first visible element with a text of its own, once it is there."""
        path = f"//*[text()[contains(., '{wanted}')]]"

        def visible(driver: Any) -> Any:
            return next((e for e in driver.find_elements(By.XPATH, path) if e.is_displayed()), None)

        return WebDriverWait(self.driver, PATIENCE, 0.2).until(visible, f"no text {wanted!r} on {self.driver.current_url}")
