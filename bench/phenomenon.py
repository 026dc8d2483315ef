"""Whether swapping layers of two experts helps on a real model: makes the experts, and asks.

    make real        # the base, and what this script needs
    apt-get download debian-handbook && dpkg -x debian-handbook*.deb handbook
    PYTHONPATH=build/real python bench/phenomenon.py --gsm8k gsm8k-train.jsonl --mgsm mgsm-rev2 \\
        --handbook handbook/usr/share/doc/debian-handbook/html --languages fr [--minutes 20] [--csv F]

All weights of SmolLM2-135M-Instruct are trained for `--minutes` an expert: `math` on GSM8K's training questions
(github.com/openai/grade-school-math), worked out and with the number alone; a language on the running text of
debian-handbook in it. They are written as delta archives, whose sizes are printed. What there is, is not made again.

Then MGSM-Rev2's questions in that language (github.com/dayeonki/multilingual_reasoning): the log-probability of the
right number after "#### ", and whether it is the most probable among four near ones (25% by chance). The first
`--search` questions choose the best of a grid of splits, and are not reported on; on the `--report` ones after them,
base, experts, soup, presets and that best are compared, in pairs over questions.

Expected, and written down whatever comes out: on a model this small, trained for minutes, that an expert changes how
an answer is written more than whether it is right; so differences in log-probability, and none in choices.
"""

import argparse
import json
import os
import random
from pathlib import Path

import yaml
from real_base import FOLDER, NAME
from transformers import AutoTokenizer

from layerloom.composer import extract
from layerloom.composer.sources.codecs import CODECS
from shared.fine_tune import fast_bf16, fine_tune
from shared.intervals import less, mean
from shared.lessons import FINAL, questions_of, text_of
from shared.report import Report

HANDBOOK = {"fr": "fr-FR", "de": "de-DE", "es": "es-ES", "ja": "ja-JP", "ru": "ru-RU", "zh": "zh-CN"}
NAMES = {"fr": "french", "de": "german", "es": "spanish", "ja": "japanese", "ru": "russian", "zh": "chinese"}
RATE = 5e-5
"""Of learning."""
GRID = {"bottom": [0, 2, 4, 6, 8], "top": [0, 2, 4], "transition": [0, 1]}
PRESETS = ("paper", "unreasonable", "lighton")


def make_experts(args: argparse.Namespace, report: Report) -> Path:
    """The family.yaml of the base and its experts."""
    wanted = ["math", *(NAMES[code] for code in args.languages)]
    rows = [[name, *trained(args, name).values()] for name in wanted]
    report.table(
        "Fine-tuning", ("expert", "learning rate", "steps", "tokens", "seconds", "first loss", "last loss"), rows
    )
    experts = {"math": {"kind": "task", "path": "math.safetensors"}} | {
        NAMES[code]: {"kind": "language", "code": code, "path": f"{NAMES[code]}.safetensors"} for code in args.languages
    }
    said = {"base": NAME, "experts": experts, "recipe": {"preset": "paper"}}
    said["compositions"] = {
        f"soup-{code}": {
            "task": "math",
            "language": NAMES[code],
            "recipe": {"method": "soup", "weights": {"task": 0.5, "language": 0.5}},
        }
        for code in args.languages
    }
    report.table("Archives, MB", ("expert", "checkpoint", *CODECS), [archives(args.to, name) for name in experts])
    path = args.to / "family.yaml"
    path.write_text(yaml.safe_dump(said, sort_keys=False))
    return path


def trained(args: argparse.Namespace, name: str) -> dict[str, float]:
    """Trains the expert if it is not there. What is known of that."""
    base, expert = args.to / NAME, args.to / name
    said = expert / "training.json"
    if not said.exists():
        tokenizer = AutoTokenizer.from_pretrained(base)
        if name == "math":
            examples = questions_of(args.gsm8k, tokenizer)
        else:
            code = next(code for code, language in NAMES.items() if language == name)
            examples = text_of(args.handbook / HANDBOOK[code], tokenizer)
        done = {"rate": RATE, **fine_tune(base, expert, examples, args.minutes, RATE)}
        for file in base.glob("*token*"):
            (expert / file.name).write_bytes(file.read_bytes())
        said.write_text(json.dumps(done))
    found: dict[str, float] = json.loads(said.read_text())
    return found


def archives(folder: Path, name: str) -> list[str | float]:
    """Sizes; the exact one stays beside the checkpoint, as NAME.safetensors."""
    checkpoint = folder / name / "model.safetensors"
    sizes: list[str | float] = [name, checkpoint.stat().st_size / 1e6]
    for codec in CODECS:
        file = folder / (f"{name}.safetensors" if codec == "exact" else f"{name}-{codec}.safetensors")
        if not file.exists():
            extract(folder / NAME, folder / name, file, codec=CODECS[codec]())
        sizes.append(file.stat().st_size / 1e6)
        if codec != "exact":
            file.unlink()
    return sizes


def near(answer: str, seed: str) -> list[str]:
    """The right number and three that somebody might come to who is a little wrong."""
    right = int(answer)
    others = {right + step for step in (-10, -2, -1, 1, 2, 10)} | {2 * right, right // 2}
    some = random.Random(seed).sample(sorted(other for other in others if other >= 0 and other != right), 3)
    return [answer, *map(str, some)]


def ask(args: argparse.Namespace, family: Path, report: Report) -> None:
    from layerloom.server.runtime.runtime import Runtime
    from layerloom.server.sweep.examiner import Examiner
    from layerloom.server.sweep.questions import Manner, Question, read_questions
    from layerloom.server.sweep.recipes import grid
    from layerloom.server.sweep.sweep import Scores, ranked

    dtype = "bfloat16" if fast_bf16() else "float32"
    options = {"dtype": dtype, "enforce_eager": True, "max_model_len": 1024, "disable_log_stats": True}
    with Runtime(family, **options) as runtime:
        for code in args.languages:
            pair = f"math+{NAMES[code]}"
            asked = []
            for number, each in enumerate(read_questions(args.mgsm / f"{code}.jsonl")):
                answer = each.answer.replace(",", "")
                choices = near(answer, f"{code} {number}")
                asked.append(Question(question=each.question, answer=answer, choices=choices))
            searched, reported = range(args.search), range(args.search, args.search + args.report)
            splits = grid(runtime.family, pair, GRID)
            seeker = Examiner(runtime, pair, asked, Manner(("logprob",), before=FINAL))
            scores: Scores = {}
            for (name, row), score in seeker.examine(splits, searched).items():
                scores.setdefault(name, {})[row] = score
            best = ranked(scores, splits, searched, ("logprob",))[0]
            examiner = Examiner(runtime, pair, asked, Manner(("choice", "logprob"), before=FINAL))
            rows = {"base": "base", "math": "math", NAMES[code]: NAMES[code], f"soup of both, {code}": f"soup-{code}"}
            rows |= {f"{preset}, {code}": f"{pair}@preset={preset}" for preset in PRESETS}
            rows |= {f"best of {len(splits)}: {best.partition('@')[2]}": best}
            found = examiner.examine(list(dict.fromkeys(rows.values())), reported)
            for kind, unit in (("logprob", "log-probability of the right answer, nats"), ("choice", "right choices")):
                of = {name: [found[name, row][kind] for row in reported] for name in rows.values()}
                report.table(
                    f"{code}: {unit}; mean and 95% interval, of differences too",
                    ("model", "mean", "low", "high", "- base", "low", "high", "- math", "low", "high"),
                    [
                        [said, *mean(of[name]), *less(of[name], of["base"]), *less(of[name], of["math"])]
                        for said, name in rows.items()
                    ],
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, required=True, help="its train.jsonl")
    parser.add_argument("--mgsm", type=Path, required=True, help="directory of LANGUAGE.jsonl")
    parser.add_argument("--handbook", type=Path, required=True, help="its directory of languages")
    parser.add_argument("--languages", default="fr", help=f"codes, of {', '.join(NAMES)}")
    parser.add_argument("--minutes", type=float, default=20, help="of training, for each expert")
    parser.add_argument("--search", type=int, default=50, help="questions to choose the best split by")
    parser.add_argument("--report", type=int, default=200, help="questions after those, to report on")
    parser.add_argument("--to", type=Path, default=FOLDER, help=f"directory; by default {FOLDER}")
    parser.add_argument("--only", metavar="EXPERT", help="train this one and stop: several may be trained at once")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    args.languages = args.languages.split(",")
    for name, value in {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}.items():
        os.environ.setdefault(name, value)
    if args.only:
        trained(args, args.only)
        return
    report = Report(
        args.csv,
        model=NAME,
        questions=f"MGSM-Rev2: {args.search} to choose the best split, {args.report} others to report on",
    )
    ask(args, make_experts(args, report), report)


if __name__ == "__main__":
    main()
