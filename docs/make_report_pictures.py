"""The pictures of reports in docs/pictures: networks of benchmarks/networks.py (their shapes are known ones, their weights
random numbers, so that all of it is ours), pruned, compiled where that is quick, reported, and photographed in Chromium.

    python docs/make_report_pictures.py [FOLDER]        # a few minutes; also prints bytes and time to open of each page
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import onnx

DOCS = Path(__file__).resolve().parent
# network -> how it is pruned
RUNS = {
    "mobilenet_v2": ["--macs", "0.5", "--calib", "synthetic{samples=16}"],
    "resnet50": ["--macs", "0.5", "--sparsity", "block4x1:0.5"],
    "encoder": ["--ratio", "0.4"],
}
# picture -> (network, scheme, what is brought to the top of the window)
PICTURES = {
    "report-resnet": ("resnet50", "light", "h1"),
    "report-transformer-dark": ("encoder", "dark", "h1"),
    "report-mobilenet-curves": ("mobilenet_v2", "light", "#curves"),
    "report-mobilenet-group": ("mobilenet_v2", "light", "#groups details"),
}
OPENED = "(e => e.loadEventEnd - e.startTime)(performance.getEntriesByType('navigation')[0])"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


def spa(*words: object) -> None:
    command = [sys.executable, "-c", "from spa.cli import main; main()", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def report(name: str, folder: Path) -> Path:
    networks = module(DOCS.parent / "benchmarks" / "networks.py")
    dense, page = folder / f"{name}.onnx", folder / f"{name}.html"
    onnx.save(getattr(networks, name)(), dense)
    spa("prune", dense, "-o", folder / name, *RUNS[name], "--force")
    spa("report", folder / name, "--dense", dense, "-o", page, "--force")
    return page


def main(folder: Path) -> None:
    chromium = module(DOCS.parent / "tests" / "chromium.py").chromium
    pages = {name: report(name, folder) for name in RUNS}
    with chromium() as page:
        page.size(1100, 800)
        for name, file in pages.items():
            page.open(file.as_uri())
            print(f"{name}: {file.stat().st_size:,} bytes, opened in {page.js(OPENED):.0f} ms")
        for picture, (name, scheme, top) in PICTURES.items():
            page.scheme(scheme)
            page.open(pages[name].as_uri())
            page.js(f"window.place = document.querySelector({top!r})")
            page.js("place.matches('details') && place.setAttribute('open', '')")
            page.js("place.scrollIntoView({ behavior: 'instant' })")
            page.js("new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))")
            page.screenshot(DOCS / "pictures" / f"{picture}.png")
        assert not page.errors, page.errors


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
