"""The registry: every tiny checkpoint by name, with its geometry, layout and seed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from . import huggingface_layout
from .geometry import Geometry
from .huggingface_layout import HuggingFaceLayout


@dataclass(frozen=True)
class Case:
    """One checkpoint folder. `seed` decides every weight and the golden's prompt."""

    geometry: Geometry
    layout: HuggingFaceLayout
    seed: int
    tokens: int = 48


SMALL = Geometry()

CASES: dict[str, Case] = {
    "hf_bf16": Case(SMALL, HuggingFaceLayout(), seed=1),
    "hf_f32": Case(SMALL, HuggingFaceLayout(dtype="F32"), seed=2),
}


def make(name: str, folder: Path | str) -> Path:
    """Writes the case's checkpoint into `folder` (made if absent) and returns it."""
    case = CASES[name]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    huggingface_layout.write_folder(folder, case.geometry, case.seed, case.layout)
    return folder


def model_hash(folder: Path) -> str:
    """Returns sha256 over the names and bytes of config.json, the index and the weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json"):
            data = path.read_bytes()
            digest.update(f"{path.name}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()
