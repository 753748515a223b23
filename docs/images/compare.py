"""Make compare.png and compare-phone.png: a generated project trains digits in four precisions, with five seeds each.

PYTHONPATH=. python docs/images/compare.py
"""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cookiecutter.main import cookiecutter
from PIL import Image
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.browser import browser, looks

ROOT = Path(__file__).parents[2]
# Trained short, so that the seeds still differ.
STUDY = [
    *("precisions=fp32,bf16,fp16,bf16_true", "seeds=0,1,2,3,4", "fail_if_worse=0.02"),
    *("experiment=digits", "trainer.max_epochs=3", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false"),
]
PICTURES = {"compare": (1280, 2330, "light"), "compare-phone": (390, 1180, "dark")}
"""Width and height of what is shown, from the verdicts down, and the reader's preference."""


def main() -> None:
    """Train, and take pictures of the page."""
    with TemporaryDirectory() as folder:
        page = study(Path(folder))
        with browser() as driver:
            for name, (width, height, theme) in PICTURES.items():
                looks(driver, width=width, theme=theme)
                driver.get(page.as_uri())
                drawn = "return document.querySelectorAll('#cost-1 .main-svg').length > 0"
                WebDriverWait(driver, 60).until(lambda driver, drawn=drawn: driver.execute_script(drawn))
                clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
                options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
                picture = driver.execute_cdp_cmd("Page.captureScreenshot", options)
                image = Image.open(io.BytesIO(base64.b64decode(picture["data"]))).convert("RGB")
                image.save(Path(__file__).with_name(f"{name}.png"), optimize=True)


def study(folder: Path) -> Path:
    """Train in a project of its own, and return the page that it ends with."""
    project = Path(cookiecutter(str(ROOT), no_input=True, default_config=True, output_dir=str(folder)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, project / "src")))}
    # Its exit status tells how the line of 2 points was held; not to have shown it is no failure here.
    subprocess.run([sys.executable, "-m", "my_project.ablate", *STUDY], cwd=project, env=environment, check=False)
    (page,) = (project / "outputs" / "ablations").glob("*/compare.html")
    return page


if __name__ == "__main__":
    main()
