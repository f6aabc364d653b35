# The graph of studies: what runs, after what, and what is out of date. `make reproduce` calls it.
# Outputs are sentinels under data/runs. Tables and figures are tracked files, whose time stamps mean nothing in a fresh clone, so they are no outputs.
import json, os, sys, time
from pathlib import Path
from gdpt.data import project_root
from gdpt.runs import missing_files
from gdpt.studies import jobs
from gdpt.tiers import get_tier

try:
    TIER = get_tier(config.get("tier", "tiny"))
    JOBS = jobs(TIER, config.get("study") or "headline")
except ValueError as e: sys.exit(f"make reproduce: {e}")

RUNS = os.path.relpath(project_root()/"data"/"runs"/TIER.name)
CODE = sorted(str(p) for p in Path("gdpt").rglob("*.py"))
PYTHON = sys.executable
# One thread per job, numpy's included.
ENV = "GDPT_PROGRESS=plain OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1"
# Digits want no GPU, and neither does a smoke run. Without a profile nothing counts GPUs, and where there is none jobs run as they are.
GPU = int(TIER.pretrain.data != "digits" and not TIER.name.endswith("smoke"))
sentinel = lambda name: f"{RUNS}/done/{name}"

localrules: all, results                     # never a cluster's

onstart:                                     # before hours go by: what cannot be made here. And RESULTS.md says how long it took
    if lacking := missing_files(TIER): sys.exit("\n  ".join([f"make reproduce: tier {TIER.name!r} misses", *lacking]))
    Path(RUNS).mkdir(parents=True, exist_ok=True)
    Path(RUNS, "started").touch()

rule all:
    input: sentinel("results")

for job in JOBS:
    rule:
        name: job.name.replace(".", "_")
        input: f"nbs/studies/{job.study}.ipynb", CODE, [sentinel(n) for n in job.needs]
        output: touch(sentinel(job.name))
        log: f"{RUNS}/logs/{job.name}.log"
        priority: job.priority
        resources: gpu=GPU
        params:
            executed=f"{RUNS}/notebooks/{job.name}.ipynb",
            tier=config.get("tier", "tiny"),
            values=json.dumps(dict(job.params)),
        message: f"{job.name}: started, its progress is in {RUNS}/logs/{job.name}.log"
        shell:
            "mkdir -p {RUNS}/notebooks && {ENV} {PYTHON} profiles/on_gpus.py {resources.gpu} {PYTHON} -m papermill {input[0]} {params.executed} "
            "-p tier {params.tier} -y '{params.values}' --log-output --no-progress-bar > {log} 2>&1 || {{ tail -n 2 {log} >&2; exit 1; }}"

rule results:
    input: [sentinel(j.name) for j in JOBS], CODE
    output: touch(sentinel("results"))
    message: "collecting rows, writing the tables"
    params: tier=config.get("tier", "tiny")
    run:
        minutes = (time.time() - Path(RUNS, "started").stat().st_mtime)/60
        shell("{PYTHON} -m gdpt results --tier {params.tier} --minutes {minutes:.1f}")
