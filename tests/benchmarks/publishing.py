# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""How long publishing and the Spaces let their users wait, in seconds; see results/publishing.json.

python tests/benchmarks/publishing.py
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from statistics import median

from gradio_client import Client
from output import output_path

from hf_methods.checkpoints import write_results


REPEATS = 5
PORT = 7869
CASES = {  # method: checkpoint to publish, endpoint of the Space, its inputs
    "softmax1": ("softmax1-orthoadam", "/compare", ("import os\n\n\ndef main(argv):\n    return 1\n", 16)),
}
ENV = {**os.environ, "HF_HUB_OFFLINE": "1"}


def time_dry_run(method: str, checkpoint: str) -> float:
    """Seconds of `hf-methods publish --dry-run`, the fresh process included."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "hf_methods.cli", "publish", method, "--repo-id", "me/model", "--dry-run"]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--checkpoint", f"model_cards/{checkpoint}", "--out", out],
            check=True,
            env=ENV,
            capture_output=True,
        )
        return time.perf_counter() - start


def time_space(method: str, endpoint: str, inputs: tuple) -> dict[str, float]:
    """Seconds until the Space answers at all, of its first answer, and of later ones."""
    url = f"http://127.0.0.1:{PORT}"
    start = time.perf_counter()
    command = [sys.executable, "-m", "hf_methods.cli", "space", method, "--port", str(PORT)]
    process = subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the Space of {method} stopped with status {process.returncode}")
            try:
                urllib.request.urlopen(f"{url}/config", timeout=1)
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.05)
        cold_start = time.perf_counter() - start
        client = Client(url, verbose=False)
        answers = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            client.predict(*inputs, api_name=endpoint)
            answers.append(time.perf_counter() - start)
    finally:
        process.terminate()
        process.wait()
    return {"cold_start": cold_start, "first_answer": answers[0], "later_answers_median": median(answers[1:])}


def main() -> None:
    out = output_path(__file__)
    start = time.time()
    seconds = {}
    for method, (checkpoint, endpoint, inputs) in CASES.items():
        dry_runs = [time_dry_run(method, checkpoint) for _ in range(3)]
        seconds[method] = {"publish_dry_run_median": median(dry_runs), **time_space(method, endpoint, inputs)}
    rounded = {method: {name: round(value, 2) for name, value in row.items()} for method, row in seconds.items()}
    write_results(out, seeds=[], data={}, wall_seconds=time.time() - start, seconds=rounded)
    print(out.read_text())


if __name__ == "__main__":
    main()
