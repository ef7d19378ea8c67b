"""Show the pages of a run in an MLflow database in a headless Chromium, one as a picture.

The picture of the documentation, after a first `make demo`:

    .venv/bin/python tests/mlflow_page.py runs/keras_mnist docs/images/mlflow.png
"""

import sys
import tempfile
import time
from pathlib import Path

import mlflow
from browser import chromium, wait_for
from mlflow_server import mlflow_server
from selenium import webdriver
from selenium.webdriver.common.by import By


class RunPages:
    """The pages of one run.

    Args:
        driver: The browser.
        uri: Address of the server.
        run: The run.
    """

    def __init__(self, driver: webdriver.Chrome, uri: str, run: mlflow.entities.Run) -> None:
        self._driver = driver
        self._address = f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"

    def open(self, tab: str, *words: str) -> str:
        """Open a tab, wait until all of the words are there, and return its text."""
        self._driver.get(f"{self._address}{tab}")

        def look() -> str:
            shown = self.text()
            return shown if all(word in shown for word in words) else ""

        return wait_for(look, f"{words} in {self._address}{tab}", 90)

    def text(self) -> str:
        """Return what is shown."""
        return self._driver.find_element(By.TAG_NAME, "body").text

    def tidy(self) -> None:
        """Leave out what is shown beside the charts, and over them while a mouse is there."""
        close = "(//*[text()='MLflow Assistant']/following::button)[3]"
        for button in self._driver.find_elements(By.XPATH, close):
            button.click()
        hide = "document.head.append(Object.assign(document.createElement('style'), {textContent: "
        self._driver.execute_script(hide + "'.modebar {display: none !important}'}))")
        time.sleep(5)

    def click(self, words: str) -> None:
        """Click where these words stand, and nothing else."""
        self._driver.find_element(By.XPATH, f"//*[text()='{words}']").click()

    def search(self, words: str) -> None:
        """Leave the charts of the metrics that have these words in their names."""
        box = "//input[@placeholder='Search metric charts']"
        self._driver.find_element(By.XPATH, box).send_keys(words)

    def images(self) -> list[tuple[int, int]]:
        """Return width and height of the images that are shown, as they were drawn."""
        size = "return [...document.images].map(image => [image.naturalWidth, image.naturalHeight])"
        return [(width, height) for width, height in self._driver.execute_script(size)]

    def charts(self) -> list[str]:
        """Return the curves that are drawn, as the paths of their lines."""
        lines = self._driver.find_elements(By.CSS_SELECTOR, ".scatterlayer .js-line")
        return [line.get_attribute("d") or "" for line in lines]


def main(output: Path, picture: Path) -> None:
    """Draw the charts of the latest run that an example has left."""
    database = (output / "mlflow.db").resolve()
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments)[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow_server(Path(folder), database) as server,
        chromium(1200, 1620) as driver,
    ):
        pages = RunPages(driver, server.uri, run)
        # What is further down isn't there before it is shown.
        pages.open("/model-metrics", "val_efficiency/conv_1", "val_g8_efficiency")
        pages.search("val_")
        wait_for(lambda: "val_aiq" in pages.text() and len(pages.charts()) >= 9, "curves", 90)
        pages.tidy()
        driver.save_screenshot(str(picture))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
