"""options: the vLLM settings that make an engine serve a family."""

import os
import sys
from importlib.util import find_spec
from typing import Any

import torch
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from layerloom.composer import ComposeError, Family, Plan
from layerloom.kernels.assign import MOST_SLOTS
from layerloom.server.versions import vllm_plugins

# Compositions are light for the scheduler: many may share a batch, and all that fit in memory stay ready.
MAX_IN_BATCH = 32
MAX_READY = 256
# And the base, in the tables of kernels.assign.
MOST_IN_ARENA = MOST_SLOTS - 1

OURS = "LAYERLOOM_ENGINE"
"""Set in the environment of engines that layerloom starts."""

RUNTIME_LOADING = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""Where it is set when names come, vLLM resolves them; where it is when routes are built, it has its own that load."""

TAKEN = ("model", "quantization", "worker_cls", "enable_lora", "additional_config", "lora_modules")

READ_AS_OURS = (None, "auto", "hf", "safetensors")
"""Load formats that say no more than what is so: a checkpoint in Hugging Face's format is read."""


def prepare_environment() -> None:
    """What vLLM reads from the environment; set before an engine or a server is built."""
    # Naming one plugin leaves out all others, so those vLLM would have loaded anyway are named too.
    plugins = os.environ.setdefault("VLLM_PLUGINS", ",".join(sorted(vllm_plugins()))).split(",")
    if "layerloom" not in plugins:
        os.environ["VLLM_PLUGINS"] = ",".join([*plugins, "layerloom"])
    os.environ[OURS] = "1"
    # Pages are packed into memory of glibc's, which else comes from Linux 4 KiB at a time, at a fifth of the speed. Of
    # use for the processes that start after this; where the user has said something, that stays.
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    # When one of several workers has died, the others wait for it as long before their clients are told.
    os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "1")


def engine_options(
    family: Family,
    allow_recipes: bool,
    given: dict[str, Any],
    bank_memory: int | None = None,
    pages: str | None = None,
    residency: str | None = None,
) -> dict[str, Any]:
    """Arguments for vLLM's EngineArgs: `given` by the user, completed with what layerloom needs.

    `bank_memory` is in bytes; `pages` is "packed" (a CPU's default) or "arena" (a GPU's, and the only way there);
    `residency` takes the place of the family's. Raises ComposeError for an option that contradicts it, and on a
    platform without a worker.
    """
    taken = [name for name in TAKEN if given.get(name)]
    if taken:
        raise ComposeError(f"layerloom sets {', '.join(taken)} itself: leave {'it' if len(taken) == 1 else 'them'} out")
    if given.get("load_format") not in READ_AS_OURS:
        raise ComposeError(f"layerloom reads the base itself: leave --load-format {given['load_format']} out")
    if (given.get("pipeline_parallel_size") or 1) > 1:
        raise ComposeError("layerloom does not run with pipeline parallelism: use --tensor-parallel-size")
    if given.get("speculative_config"):
        raise ComposeError("layerloom does not run with speculative decoding: leave --speculative-config out")
    if bank_memory is not None and bank_memory < 0:
        raise ComposeError(f"bank memory cannot be {bank_memory} bytes")
    cpu = current_platform.is_cpu()
    if not cpu and not current_platform.is_cuda_alike():
        raise ComposeError(f"layerloom runs on CPUs and GPUs; this vLLM is built for {current_platform.device_name}")
    pages = pages or ("packed" if cpu else "arena")
    if pages not in ("packed", "arena") or (pages == "packed" and not cpu):
        raise ComposeError(f"pages cannot be {pages!r} here; valid: {'packed, arena' if cpu else 'arena'}")
    if residency not in (None, "assembled", "delta"):
        raise ComposeError(f"residency cannot be {residency!r}; valid: assembled, delta")
    family.residency = residency or family.residency
    if pages == "packed" and residency == "delta":
        raise ComposeError("residency delta is for --pages arena: on packed pages layers are always assembled")
    max_loras = given.get("max_loras") or min(MAX_IN_BATCH, len(family.names()))
    if pages == "arena" and max_loras > MOST_IN_ARENA:
        raise ComposeError(f"a batch mixes at most {MOST_IN_ARENA} compositions here, not --max-loras {max_loras}")
    settings = {
        "family": str(family.path),
        "allow_recipes": allow_recipes,
        "compile": compiles(given),
        "bank_memory": bank_memory,
        "pages": pages,
        "residency": family.residency,
        "engines": given.get("data_parallel_size") or 1,
    }
    options = {
        "served_model_name": ["base"],
        **around(family, given),
        **given,
        "model": str(family.base.path),
        "quantization": "layerloom",
        "load_format": "layerloom",
        # Not Mistral's own, which vLLM prefers where a directory has both.
        "config_format": "hf",
        "worker_cls": f"layerloom.server.engine.worker.{'CPU' if cpu else 'GPU'}Worker",
        "enable_lora": True,
        "max_loras": max_loras,
        "max_cpu_loras": given.get("max_cpu_loras") or max(MAX_READY, len(family.names()), max_loras),
        "additional_config": {"layerloom": settings},
    }
    if cpu:
        # Else vLLM would choose its operators for compiled code and then run them one by one.
        options["enforce_eager"] = not settings["compile"]
    return options


def around(family: Family, given: dict[str, Any]) -> dict[str, Any]:
    """Options for a base whose language model is part of a larger one: text alone, unless asked otherwise."""
    if not family.base.layout.nested:
        return {}
    if "torchvision" not in sys.modules and find_spec("torchvision") is None:
        # vLLM says only that it cannot inspect the class.
        raise ComposeError(
            f"{family.base.path}: vLLM needs torchvision for a model with a vision tower, even for text alone, and it "
            f"is not installed: install the one that goes with torch {torch.__version__}"
        )
    return {} if "limit_mm_per_prompt" in given else {"language_model_only": True}


def load_family(settings: dict[str, Any]) -> Family:
    """The family as all of an engine's processes must see it, or they give compositions different digests."""
    # Whoever started the engine has been told, and what is said takes reading.
    family = Family.load(settings["family"], warn=False)
    family.residency = settings["residency"]
    # They can take a while, and this is no place where requests wait.
    family.revisions()
    return family


def compiles(given: dict[str, Any]) -> bool:
    """Whether the user asks for torch.compile, which vLLM leaves out on a CPU when there are adapters."""
    config = given.get("compilation_config")
    mode = config.get("mode") if isinstance(config, dict) else getattr(config, "mode", config)
    return bool(mode) and not given.get("enforce_eager")


def lora_request(plan: Plan) -> LoRARequest:
    """The composition as vLLM's scheduler, prefix cache and metrics know it.

    The id is 63 bits of the digest, so that every process and API server gives a composition the same one: among a
    million compositions two have the same with a chance of 5e-8, and `hold` refuses the second.
    """
    adapter_id = 1 + int(plan.digest[:16], 16) % (2**63 - 1)
    return LoRARequest(plan.name, adapter_id, plan.digest, base_model_name="base")
