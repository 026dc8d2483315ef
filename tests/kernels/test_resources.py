"""Every kernel compiles for every architecture, spills nothing and has not grown: bench/kernel_resources.py says so."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "kernel_resources.py"


def script():
    spec = importlib.util.spec_from_file_location("kernel_resources", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_a_fault():
    resources = script()
    was = resources.Row("compose int4", "sm_90", "16x64x256 8 warps 1 stages", 48, 0, 1024)
    table = {was.key: was}

    def faults(*rows, whole=True, same_compiler=True):
        return resources.faults(list(rows), table, whole, same_compiler)

    assert not faults(was) and not faults(was._replace(registers=40, shared=0))
    assert faults(was._replace(registers=49)) == [f"{', '.join(was.key)}: registers 48 → 49"]
    assert faults(was._replace(shared=2048)) == [f"{', '.join(was.key)}: shared 1024 → 2048"]
    assert not faults(was._replace(registers=49), same_compiler=False)
    assert faults(was._replace(spills=4), same_compiler=False) == ["compose int4, sm_90: spills 4"]
    assert "bytes of shared memory of 232448" in faults(was._replace(shared=1 << 18))[0]
    assert "not in the table" in faults(was, was._replace(arch="sm_80"))[0]
    assert "not a kernel" in faults()[0] and not faults(whole=False)
    assert "two variants" in faults(was, was)[0]


def test_the_table_is_of_this_triton():
    resources = script()
    version, table = resources.read_table()
    assert version == resources.triton.__version__ and {row.arch for row in table.values()} == {
        *resources.ARCHITECTURES
    }


def run(*options):
    # A process of its own: one that has interpreted kernels cannot compile them.
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, str(SCRIPT), *options], env=env, capture_output=True, text=True)


def test_resources():
    done = run()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_the_table_has_what_the_compiler_says():
    some = "--only", "paged_embedding bf16"
    known, compiled = run(*some), run(*some, "--again")
    assert re.search(r"^(\d+) kernels, \1 compiled, 0 faults", compiled.stdout, re.M), compiled.stdout + compiled.stderr
    assert re.search(r"^(\d+) kernels, \d+ compiled, 0 faults", known.stdout, re.M), known.stdout + known.stderr
    # All numbers are the same, and so is the key of what was compiled.
    assert known.stdout.splitlines()[:-1] == compiled.stdout.splitlines()[:-1]


def test_another_source_type_constant_or_option_is_another_kernel():
    resources = script()
    variant = resources.found("sm_90")[0]
    own = resources.key(variant, "sm_90")
    assert own == resources.key(variant, "sm_90")
    keys = [resources.key(v, arch) for arch in resources.ARCHITECTURES for v in resources.found(arch)]
    assert len({*keys}) == len(keys), "each form of a kernel has a key of its own"
    warps = replace(variant, settings=replace(variant.settings, num_warps=2 * variant.settings.num_warps))
    assert own not in (resources.key(warps, "sm_90"), resources.key(replace(variant, aligned=()), "sm_90"))
