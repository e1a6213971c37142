"""A broker of files."""

import os
from pathlib import Path

folder = os.environ["QUEUE"]
broker_url = "filesystem://"
broker_transport_options = {f"data_folder_{way}": f"{folder}/queue" for way in ("in", "out")} | {
    "control_folder": f"{folder}/control",
    "polling_interval": 0.05,
}
Path(folder, "queue").mkdir(exist_ok=True)
