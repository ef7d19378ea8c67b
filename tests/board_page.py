"""Show the Custom Scalars tab of a TensorBoard log folder in a browser, as data and as a picture.

The picture of the documentation, after a first `make demo`:

    .venv/bin/python tests/board_page.py runs/keras_mnist/tensorboard/* docs/images/tensorboard.png
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser import chromium, free_port, served, wait_for
from selenium import webdriver

_CARDS = """
const found = [];
const walk = (node) => {
  for (const inner of [node.shadowRoot, ...(node.children || [])]) {
    if (!inner) continue;
    if (inner.localName === "tf-custom-scalar-multi-line-chart-card") found.push(inner);
    walk(inner);
  }
};
walk(document);
const below = (node, take) => {
  const taken = [];
  const search = (node) => {
    for (const inner of [node.shadowRoot, ...(node.children || [])]) {
      if (!inner) continue;
      if (inner.matches && take(inner)) taken.push(inner);
      search(inner);
    }
  };
  search(node);
  return taken;
};
"""
# Points on the paths, turned into the values of the axis that is drawn beside them.
_READ = (
    _CARDS
    + """
return found.map((card) => {
  const [element] = below(card, (node) => node.localName === "vz-line-chart2");
  const chart = element && element._chart;
  const lines = below(card, (node) => node.matches("path.line") && node.getAttribute("d"));
  return {
    title: card.title,
    legend: below(card, (node) => node.matches(".match-list-entry"))
      .map((entry) => entry.textContent.trim().split(/\\s+/)),
    lines: lines.map((line) => ({
      shown: getComputedStyle(line).stroke !== "none" && line.getBoundingClientRect().width > 0,
      values: line.getAttribute("d").slice(1).split("L")
        .map((point) => chart.yScale.invert(Number(point.split(",")[1]))),
    })),
  };
});
"""
)
_UNFOLD = (
    _CARDS
    + """
for (const card of found)
  for (const button of below(card, (node) => node.matches(".toggle-matches-button")))
    button.click();
return found.length;
"""
)
_UNFOLDED = (
    _CARDS
    + """
return found.flatMap((card) => below(card, (node) => node.matches(".iron-collapse-opened"))).length;
"""
)


@contextlib.contextmanager
def custom_scalars(folder: Path, width: int = 1400, height: int = 1000) -> Iterator[Any]:
    """Start TensorBoard on a log folder, and open its Custom Scalars tab without smoothing.

    Args:
        folder: The log folder.
        width: Of the browser's window, pixels.
        height: Of the browser's window, pixels.
    """
    address = f"http://127.0.0.1:{(port := free_port())}/"
    command = [
        *(sys.executable, "-m", "tensorboard.main", "--logdir", folder),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    with served(command, f"{address}data/plugins_listing"), chromium(width, height) as driver:
        driver.get(f"{address}#custom_scalars&_smoothingWeight=0")
        yield driver


def charts(driver: webdriver.Chrome, n_charts: int, n_curves: int) -> list[dict[str, Any]]:
    """Wait until that many charts draw that many curves in all, and return what they draw.

    Returns:
        For each chart its `title`, its `legend` (symbol, tag and run of each curve) and its
        `lines`: whether each is `shown`, and its `values` on the chart's own axis.
    """

    def look() -> Any:
        found = driver.execute_script(_READ)
        drawn = sum(bool(line["values"]) for chart in found for line in chart["lines"])
        return found if len(found) == n_charts and drawn >= n_curves else None

    wait_for(look, f"{n_charts} charts of {n_curves} curves")
    return list(driver.execute_script(_READ))


def photograph(driver: webdriver.Chrome, picture: Path, width: int, height: int) -> None:
    """Unfold the charts' legends, and write a picture of the tab.

    Args:
        driver: The browser, with all charts drawn.
        picture: A PNG file.
        width: What of the page is shown, in its own pixels; the picture has one and a half as many.
        height: The same.
    """
    n_charts = driver.execute_script(_UNFOLD)
    shown = {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shown)
    wait_for(lambda: driver.execute_script(_UNFOLDED) == n_charts, "the unfolded legends")
    driver.save_screenshot(str(picture))


def main() -> None:
    """Photograph the tab of the Keras example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    with custom_scalars(arguments.folder) as driver:
        # Of the paper and of groups: the network's and the layers', with the accuracy in training.
        charts(driver, 4, 14)
        photograph(driver, arguments.picture, 1180, 1040)


if __name__ == "__main__":
    main()
