"""Several languages on layerloom, next to what stock vLLM has for them: speed, memory, disk, and whether it is right.

    python bench/compare.py --csv out.csv --out out.png          everything, in about 25 minutes on two cores
    python bench/compare.py --quick                              a small model and few requests, to try it
    python bench/compare.py --plot out.csv [more.csv] --out out.png

    merged         stock vLLM on one merged checkpoint that answers for all languages: the speed to reach
    base           the same on the base: what answers are like that know of no language
    layerloom      the family, in one engine; layerloom-int4, -sign, …: archives of its experts under that codec, and
                   with -delta at the end kept packed beside the base's (--residency delta)
    engines        a stock engine for each language, all of them running; up to --few languages
    restarted      one stock engine, started on the next checkpoint when all requests for a language are answered;
                   restarts are measured, and added to what the groups of requests take
    lora-16, …     vLLM's multi-LoRA with adapters of that rank, cut by their singular values from what a composition
                   changes in the base. Norms are lost, and all beyond the rank. 512 is the largest that vLLM takes

All of a group are running, and take turns load by load, so that a row compares with the others of its table. The loads:
1 to 16 languages, all alike or by zipf; clients who ask again once they are answered (closed), or requests that come by
themselves (poisson, at --share of the rate that `merged` had in its first closed loop). Every answer is greedy,
streamed, and of --tokens tokens. It is held against what stock vLLM says on its language's merged checkpoint, alone and
in a batch of eight, whichever it goes together with longer. Batches round otherwise: an answer is wrong if its first
token that differs is less likely (in logprob) by more than twice what stock's two answers differ by at most. "Between
tokens" are chunks of the stream. `disk` is what serving reads; `memory` what all processes of a system have, with what
they share (libraries among it) counted once, and on NVIDIA's devices what the driver says. `CPU` is of the engines, the
steadier clock where others use the machine. p99 of so few first tokens is the worst of them. Adding a language is timed
when nobody asks.

One core computes, all engines of a system on it; HTTP servers and the clients have the others. A random Llama (193 M)
says nothing about how well adapters hold a real fine-tune: its changes have full rank, the worst case for them, and
their order of magnitude is assumed. So the same is asked of the demo's trained experts (--no-demo leaves it out).

Expected, from a roofline and before anything was measured. A core reads 15 GB/s and multiplies at 200 GFLOP/s, HTTP and
Python add 5 ms to a step. A step reads 382 MB; of these 146 MB (6 layers of 16 and the head) once for each language in
the batch: 2.0, 3.6, 5.2 and 6.4 of 2 to 16 among 8 clients, fewer with zipf. A prompt of 24 tokens takes 45 ms,
a fourth of one in each step. A LoRA on a CPU gathers its weights for every token, 10 bytes for each number: 1.2 M
numbers for a rank of 4, per token. Of merged's tok/s, then:

    languages                1     2     4     8     16
    layerloom              1.0   0.8   0.6   0.5    0.45     4.2 GB with 16 languages; merged 1.6 GB
    engines                1.0   0.6   0.35    -       -     1.6 GB each
    restarted              1.0   0.2   0.1  0.05    0.03     a restart takes 15 s
    lora-16                0.45 with any number of them      1.9 GB; lora-64 0.2 and 2.8 GB, lora-512 0.03

So layerloom should lose to lora-16 in speed from 8 languages on, and in memory and disk from two; which should have
about as many tokens right as the base.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from shared import pictures
from shared.demo_agreement import on_the_demo
from shared.families import Model
from shared.materials import Materials, write_family
from shared.references import references
from shared.report import Report
from shared.side_by_side import Comparison
from shared.streams import PROMPT, prompt
from shared.synthetic import SHAPE
from shared.systems import NAMES, Setting

SHAPES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 2, "num_key_value_heads": 1},
    "193M": {},
    # Llama-3.2-1B's and Llama-3.1-8B's layers.
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "vocab_size": 32768},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "head_dim": 128}
    | {"vocab_size": 128256, "num_hidden_layers": 32},
}
TOGETHER = (
    ("merged", "layerloom", "engines", "restarted", "lora-16", "lora-64"),
    ("base", "layerloom-exact", "layerloom-int4", "layerloom-sign", "lora-512"),
)
"""What is running at once. The second group is tried with --few languages alone."""
PROMPTS = 8
QUICK = (
    "--shape",
    "tiny",
    "--languages",
    "1",
    "2",
    "4",
    "--few",
    "2",
    "--requests",
    "8",
    "--tokens",
    "8",
    "--distinct",
    "2",
)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--systems", nargs="+", metavar="SYSTEM", help=f"in place of all: {', '.join(NAMES)}")
    add("--apart", action="store_true", help="start each system alone, where memory has no room for all")
    add("--languages", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    add(
        "--few",
        type=int,
        default=4,
        help="the most languages of `engines` and of what is tried beside the main systems",
    )
    add("--loads", nargs="+", choices=("closed", "poisson"), default=["closed", "poisson"])
    add("--choices", nargs="+", choices=("uniform", "zipf"), default=["uniform", "zipf"])
    add("--requests", type=int, default=20, help="of a load")
    add("--seconds", type=float, default=15, help="after which a load begins no more of them")
    add("--tokens", type=int, default=32, help="of an answer")
    add("--clients", type=int, default=8, help="of a closed loop")
    add("--rate", type=float, help="requests a second of the open loop")
    add(
        "--share", type=float, default=0.4, help="without --rate: of what the first system did in the first closed loop"
    )
    add("--shape", choices=SHAPES, default="193M")
    add(
        "--distinct",
        type=int,
        default=4,
        help="languages with files of their own; others are the same under other names",
    )
    add("--compiled", action="store_true", help="without --enforce-eager")
    add("--kv-cache", default="256M", help="of each engine")
    add("--pages", choices=("packed", "arena"), help="of layerloom's engines; by default as the device likes it")
    add("--pin", action=argparse.BooleanOptionalAction, default=not torch.cuda.is_available(), help="one core computes")
    add("--demo", action=argparse.BooleanOptionalAction, default=True, help="agreement on trained experts, too")
    add("--quick", action="store_true", help=f"begins with {' '.join(QUICK)}; what else is given counts")
    add("--place", type=Path, help="where the temporary directory is made")
    add("--csv", type=Path)
    add("--plot", nargs="+", type=Path, metavar="CSV", help="measure nothing, and draw what these files say")
    add("--out", type=Path, help="the picture; its ending says which format")
    arguments = sys.argv[1:]
    args = parser.parse_args([*QUICK, *arguments] if "--quick" in arguments else arguments)
    if args.loads == ["poisson"] and args.rate is None:
        parser.error("--loads poisson alone needs a --rate: by default it comes from the first closed loop")
    args.loads.sort()
    args.languages.sort()
    return args


def main() -> None:
    args = parsed()
    if args.plot:
        pictures.draw(args.plot, args.out or args.plot[0].with_suffix(".png"))
        return
    few = max((count for count in args.languages if count <= args.few), default=min(args.languages))
    groups = [(group, args.languages if group is TOGETHER[0] else [few]) for group in TOGETHER]
    if args.systems:
        groups = [(args.systems, args.languages)]
    if args.apart:
        groups = [((name,), counts) for group, counts in groups for name in group]
    ranks = sorted({int(name[5:]) for group, _ in groups for name in group if name.startswith("lora-")})
    options = ["--kv-cache-memory-bytes", args.kv_cache, "--max-num-seqs", "64", "--max-num-batched-tokens", "512"]
    options += ["--no-enable-prefix-caching", *([] if args.compiled else ["--enforce-eager"])]
    most = max(args.languages)
    languages = [f"language-{number}" for number in range(most)]
    model = Model.of("llama", **{"num_hidden_layers": 16, **SHAPE, **SHAPES[args.shape]})
    own = f"{len(model.own) - 1} of {model.depth} layers and the stem, {model.bytes(model.own) / 1e6:.0f} MB"
    with tempfile.TemporaryDirectory(prefix="layerloom-compare-", dir=args.place) as place:
        root = Path(place)
        report = Report(
            args.csv,
            family=f"a random Llama of {model.bytes() / 2e6:.0f} M parameters; a language's own are {own}",
            files=f"{min(args.distinct, most)} languages have files of their own, others the same under other names",
            asked=f"{args.requests} requests of {PROMPT} + {args.tokens} tokens; closed: {args.clients} clients",
            engines=f"{' '.join(options)}; {'one core computes' if args.pin else 'not bound to cores'}",
        )
        (root / "family").mkdir()
        path = write_family(root / "family", model, languages, min(args.distinct, most))
        materials = Materials(root, path, languages, min(args.distinct, most), ranks)
        pages = ("--pages", args.pages) if args.pages else ()
        prompts = [prompt(number) for number in range(PROMPTS)]
        setting = Setting(materials, options, most, prompts, args.tokens, root, pages)
        right, setting = references(setting, most)
        report.facts["rounding"] = f"logprobs of stock alone and in a batch differ by up to {right.rounding:.3f}"
        report.facts["restart"] = f"{setting.restart:.1f} s from the end of an engine to the first token of the next"
        comparison = Comparison(report, setting, right, args)
        for group, counts in groups:
            comparison.group(group, counts)
        if args.demo:
            (root / "demo").mkdir()
            on_the_demo(report, root / "demo", options)
    if args.csv and args.out:
        pictures.draw([args.csv], args.out)


if __name__ == "__main__":
    main()
