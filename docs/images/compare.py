"""Make compare.png and compare-phone.png: the page of runs whose numbers are made up, so that each verdict is there.

PYTHONPATH=. python docs/images/compare.py
"""

import base64
import io
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait

from mp_plugin.compare import build_comparison_page, compare_runs
from tests.helpers.browser import browser, looks
from tests.helpers.compared_runs import EQUIVALENT, FP32, STEP_MS, UNCLEAR, WORSE, write_run

PICTURES = {"compare": (1280, 2130, "light"), "compare-phone": (390, 1180, "dark")}
"""Width and height of what is shown, from the verdicts down, and the reader's preference."""


def main() -> None:
    """Leave the runs, build the page, and take its pictures."""
    with TemporaryDirectory() as folder:
        page = Path(folder) / "compare.html"
        page.write_text(build_comparison_page(compare_runs([leave_runs(Path(folder))])), encoding="utf-8")
        with browser() as driver:
            for name, (width, height, theme) in PICTURES.items():
                looks(driver, width=width, theme=theme)
                driver.get(page.as_uri())
                drawn = "return document.querySelectorAll('#cost-2 .main-svg').length > 0"
                WebDriverWait(driver, 60).until(lambda driver, drawn=drawn: driver.execute_script(drawn))
                clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
                options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
                picture = driver.execute_cdp_cmd("Page.captureScreenshot", options)
                image = Image.open(io.BytesIO(base64.b64decode(picture["data"]))).convert("RGB")
                image.save(Path(__file__).with_name(f"{name}.png"), optimize=True)


def leave_runs(folder: Path) -> Path:
    """Leave a sweep of three precisions over five seeds."""
    groups = (("fp32", FP32, {}), ("bf16", EQUIVALENT, {}), ("fp16", WORSE, {}), ("fp16", UNCLEAR, {"auto": True}))
    for place, (precision, accuracies, fallback) in enumerate(groups):
        for seed, accuracy in enumerate(accuracies):
            right = round(200 * accuracy)
            columns = {
                "label": [sample % 10 for sample in range(200)],
                "prediction": [(sample + ((sample + seed) % 200 >= right)) % 10 for sample in range(200)],
                "confidence": [0.8 + 0.001 * sample for sample in range(200)],
            }
            write_run(
                folder / "sweep" / str(5 * place + seed),
                precision,
                seed,
                accuracy,
                settings={"fallback": fallback},
                choices={"precision/fallback@precision.fallback": "auto" if fallback else "none"},
                predictions=columns,
                skipped=2 * (precision == "fp16"),
                incidents=2 * (precision == "fp16"),
                islands=["net.head"] if fallback else [],
                cost={"step": STEP_MS[precision] * (1 + 0.03 * seed * (precision != "fp32"))},
            )
    return folder / "sweep"


if __name__ == "__main__":
    main()
