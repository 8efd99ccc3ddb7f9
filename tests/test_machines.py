"""Every model learns with a margin on other machines too, which environment variables stand in for.

They take vector instructions away from torch's own kernels or from oneDNN's, and change the number of threads, so that
sums are rounded in another order. `MMREC_LMM_SEEDS=20` tries so many seeds instead of five.
"""

import os
import subprocess
import sys

import pytest

LEARNS = """
import sys, torch
from mmrec_lmm.plugin.contracts import ParameterFree
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.testing import check_model_learns

for spec in load_registry().models:
    if issubclass(resolve(spec.cls), ParameterFree):
        continue  # nothing learns
    check_model_learns(resolve(spec.cls), resolve(spec.config)(), seeds=range(int(sys.argv[1])), margin=0.5)
    print(spec.name, flush=True)
print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
"""

MACHINES = {
    "this": {},
    "no-vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "onednn-sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "neither": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "two-threads": {"OMP_NUM_THREADS": "2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_every_model_learns_with_twice_the_margin(machine: str) -> None:
    variables = {"OMP_NUM_THREADS": "1"} | MACHINES[machine]
    seeds = os.environ.get("MMREC_LMM_SEEDS", "5")
    child = subprocess.run(
        [sys.executable, "-c", LEARNS, seeds], env=os.environ | variables, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    *models, took = child.stdout.splitlines()
    assert {"BPR", "VBPR", "MMGCN", "SLMRec", "MMGCL", "LATTICE", "LightGCN", "FREEDOM", "BM3", "MGCN"} <= set(models)
    capability, threads = took.split()
    assert threads == variables["OMP_NUM_THREADS"]
    if variables.get("ATEN_CPU_CAPABILITY") == "default" and sys.platform == "linux":
        assert capability in ("DEFAULT", "NO"), "the variable changed nothing, so this tests nothing"
