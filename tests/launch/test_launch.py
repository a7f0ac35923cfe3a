"""The launch scripts: what they show, what they run against stand-ins, and two real processes."""

import functools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix != ".Dockerfile")
TINY = "tests/configs_tiny.py"
TRAIN = ("train", "--config=configs/quickstart.py:method=lora", "--workdir=runs/q")


def tool(name):
    """A tool beside this Python or on the path."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_syntax(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)


def test_shellcheck():
    found = tool("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed; it is in the extra [dev]")
    command = [found, "--external-sources", *(LAUNCH / name for name in SCRIPTS)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_scripts_can_be_started():
    sourced = {"install.sh", "steps.sh"}
    assert {name for name in SCRIPTS if not os.access(LAUNCH / name, os.X_OK)} == sourced


class Place:
    """A copy of launch/ in an empty repository, and stand-ins for programs, which record calls."""

    def __init__(self, folder):
        self.repository, self.programs = folder / "repository", folder / "programs"
        shutil.copytree(LAUNCH, self.repository / "launch")
        shutil.copy(ROOT / "setup.cfg", self.repository)
        self.programs.mkdir()
        self.record = folder / "calls"
        for name in ("gcloud", "kubectl", "xpk", "srun", "scontrol", "sudo", "sleep", "dynadapt"):
            self.program(name, "")

    def program(self, name, body):
        record = f'printf "%q " {name} "$@" >>{self.record}; echo >>{self.record}'
        (self.programs / name).write_text(f"#!/bin/bash\n{record}\n{body}\n")
        (self.programs / name).chmod(0o755)

    def start(self, script, *args, code=0, **environment):
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "DYNADAPT"))},
            **{"PATH": f"{self.programs}:{os.environ['PATH']}", "NAME": "adapt", "ZONE": "us-w4"},
            **{"CLUSTER": "tpus", "SHARED": "10.0.0.2:/share", **environment},
        }
        command = ["bash", str(self.repository / "launch" / script), *args]
        pipes = dict(capture_output=True, text=True, stdin=subprocess.DEVNULL)
        result = subprocess.run(command, env=env, timeout=60, **pipes)
        assert result.returncode == code, result.stdout + result.stderr
        return result

    def calls(self, *programs):
        """What was called since, each as a list of words."""
        if not self.record.exists():
            return []
        found = [shlex.split(line) for line in self.record.read_text().splitlines()]
        self.record.unlink()
        return [call for call in found if not programs or call[0] in programs]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


POD = """\
gcloud compute tpus queued-resources create adapt --node-id=adapt --zone=us-w4 \
--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot
until [ "$(gcloud compute tpus queued-resources describe adapt --zone=us-w4 \
'--format=value(state.state)')" = ACTIVE ]; do sleep 30; done
gcloud compute tpus tpu-vm ssh adapt --zone=us-w4 --worker=all '--command=sudo apt-get \
-o DPkg::Lock::Timeout=600 -q update && sudo apt-get -o DPkg::Lock::Timeout=600 -q -y install \
python3.11 python3.11-venv nfs-common'
mkdir -p runs
tar --exclude=./.venv --exclude=./.git --exclude=./runs -czf runs/adapt.tar.gz .
gcloud compute tpus tpu-vm scp runs/adapt.tar.gz adapt:dynadapt.tar.gz --zone=us-w4 --worker=all
rm runs/adapt.tar.gz
gcloud compute tpus tpu-vm ssh adapt --zone=us-w4 --worker=all '--command=mkdir -p dynadapt/runs \
&& tar -xzf dynadapt.tar.gz -C dynadapt'
gcloud compute tpus tpu-vm ssh adapt --zone=us-w4 --worker=all '--command=mountpoint -q \
dynadapt/runs || sudo mount -t nfs 10.0.0.2:/share dynadapt/runs'
gcloud compute tpus tpu-vm ssh adapt --zone=us-w4 --worker=all '--command=[ -w dynadapt/runs ] || \
sudo chown $USER dynadapt/runs'
gcloud compute tpus tpu-vm ssh adapt --zone=us-w4 --worker=all '--command=cd dynadapt && \
launch/worker.sh --background train --config=configs/quickstart.py:method=lora --workdir=runs/q'
gcloud compute tpus tpu-vm ssh adapt --zone=us-w4 --worker=0 '--command=cd dynadapt && \
launch/worker.sh --follow'
mkdir -p runs/q
gcloud compute tpus tpu-vm scp --recurse adapt:dynadapt/runs/q runs --zone=us-w4 --worker=0
gcloud compute tpus tpu-vm scp adapt:dynadapt/worker.log runs/q/worker.log --zone=us-w4 --worker=0
gcloud compute tpus queued-resources delete adapt --zone=us-w4 --force --quiet
"""

SLURM = """\
source launch/install.sh && install_dynadapt cuda13
srun --cpus-per-task=8 --kill-on-bad-exit=1 bash -c 'export COORDINATOR=FIRST_NODE:20000; exec \
launch/worker.sh "$@"' worker train --config=configs/quickstart.py:method=lora --workdir=runs/q
"""

GKE = """\
mkdir -p runs
tar --exclude=./.venv --exclude=./.git --exclude=./runs -czf runs/adapt.tar.gz .
rm -rf runs/adapt.image
mkdir runs/adapt.image
tar -xzf runs/adapt.tar.gz -C runs/adapt.image
xpk workload create --cluster=tpus --zone=us-w4 --workload=adapt --tpu-type=v5litepod-16 \
--num-slices=1 --base-docker-image=python:3.12 --script-dir=runs/adapt.image --max-restarts=50 \
--termination-grace-period-seconds=120 --env=DYNADAPT_DISTRIBUTED=1 '--command=bash \
launch/worker.sh train --workdir=/share/q'
rm -rf runs/adapt.tar.gz runs/adapt.image
until [[ $(kubectl get pods --selector=jobset.sigs.k8s.io/jobset-name=adapt,\
batch.kubernetes.io/job-completion-index=0 '--output=jsonpath={.items[*].status.phase}') =~ \
Running|Succeeded|Failed ]]; do sleep 10; done
kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=adapt,\
batch.kubernetes.io/job-completion-index=0 --tail=-1
xpk workload list --cluster=tpus --zone=us-w4 --wait-for-job-completion=adapt
"""

WORKER = """\
source launch/install.sh && install_dynadapt tpu
env DYNADAPT_DISTRIBUTED=1 .venv/bin/dynadapt train \
--config=configs/quickstart.py:method=lora --workdir=runs/q
"""

VTAB = """\
launch/local.sh vtab run --methods=lora --workdir=runs/v
launch/local.sh vtab report --partial --workdir=runs/v --out=runs/v/table.csv
launch/local.sh vtab report --partial --workdir=runs/v --out=runs/v/table.md
"""

SHOWN = [
    ("tpu_pod.sh", TRAIN, POD),
    ("slurm.sbatch", TRAIN, SLURM),
    ("gke_xpk.sh", ("train", "--workdir=/share/q"), GKE),
    ("worker.sh", TRAIN, WORKER),
    ("vtab.sh", ("--methods=lora", "--workdir=runs/v"), VTAB),
]


@pytest.mark.parametrize(("script", "args", "want"), SHOWN, ids=[s[0] for s in SHOWN])
def test_print_shows_and_runs_nothing(script, args, want, place):
    before = sorted(place.repository.rglob("*"))
    assert place.start(script, "--print", *args).stdout == want
    assert place.calls() == [] and sorted(place.repository.rglob("*")) == before


def states(place, *names, then="ACTIVE"):
    """gcloud's answers to describe, in turn; an empty one is that there is no such resource."""
    queue = place.programs / "states"
    queue.write_text("".join(f"{name}\n" for name in names))
    body = f"""case "$*" in
      *describe*)
        state=$(head -n 1 {queue}); sed -i 1d {queue} ;;
    esac
    case "$*" in
      *describe*) [ -s {queue} ] || echo {then} >{queue}; [ -n "$state" ] && echo "$state" ;;
      *--follow*) exit ${{FOLLOWED:-0}} ;;
    esac"""
    place.program("gcloud", body)


def shown(text, *programs):
    found = [shlex.split(line) for line in text.splitlines() if not line.startswith("until ")]
    return [call for call in found if call[0] in programs]


def test_a_pod_from_its_request_to_its_end(place):
    states(place, "", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    place.start("tpu_pod.sh", *TRAIN)
    calls = place.calls("gcloud", "sleep")
    assert [call[1] for call in calls if call[0] == "sleep"] == ["30", "30"]
    done = [call for call in calls if call[0] == "gcloud" and "describe" not in call]
    assert done == shown(POD, "gcloud")
    assert not list((place.repository / "runs").glob("*.tar.gz"))


def test_a_pod_that_is_there_is_taken_up(place):
    states(place, "ACTIVE")
    place.start("tpu_pod.sh", *TRAIN, KEEP="1")
    done = [call for call in place.calls("gcloud") if "describe" not in call]
    assert done == shown(POD, "gcloud")[1:-1]


def test_a_pod_that_was_preempted_is_requested_again(place):
    states(place, "SUSPENDED", "DELETING", "", "ACTIVE")
    place.start("tpu_pod.sh", *TRAIN)
    done = [call for call in place.calls("gcloud") if "describe" not in call]
    assert done == [shown(POD, "gcloud")[-1], *shown(POD, "gcloud")]


def test_a_request_that_fails_is_made_again_but_not_for_ever(place):
    states(place, "", "FAILED", "", "FAILED", "", "ACTIVE")
    place.start("tpu_pod.sh", *TRAIN)
    done = [call[4] for call in place.calls("gcloud") if "describe" not in call]
    assert done[:5] == ["create", "delete", "create", "delete", "create"]
    states(place, then="FAILED")
    result = place.start("tpu_pod.sh", *TRAIN, code=1)
    why = "gcloud compute tpus queued-resources describe adapt --zone=us-w4 says why"
    assert result.stderr == f"dynadapt: 3 requests failed; {why}\n"
    done = [call[4] for call in place.calls("gcloud") if "describe" not in call]
    assert done == ["create", "delete", "delete"]  # the last one stays


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
        ("v4-16", "tpu-ubuntu2204-base"),
    ],
)
def test_the_software_is_that_of_the_accelerator(accelerator, runtime, place):
    start = functools.partial(place.start, "tpu_pod.sh", "--print", *TRAIN, ACCELERATOR=accelerator)
    assert f"--accelerator-type={accelerator} --runtime-version={runtime} " in start().stdout
    assert "--runtime-version=mine " in start(RUNTIME="mine").stdout


def test_preemption_during_the_run_says_what_to_do(place):
    states(place, "ACTIVE", then="SUSPENDING")
    result = place.start("tpu_pod.sh", *TRAIN, FOLLOWED="255", code=1)
    assert "the pod was preempted; start the same command again" in result.stderr
    assert "delete" not in [word for call in place.calls("gcloud") for word in call]


def test_a_failed_run_is_fetched_and_its_code_is_the_answer(place):
    states(place, "ACTIVE")
    place.start("tpu_pod.sh", *TRAIN, FOLLOWED="2", code=2)
    words = [word for call in place.calls("gcloud") for word in call]
    assert "adapt:dynadapt/worker.log" in words and "delete" in words


def test_a_slice_of_one_host_needs_no_share(place):
    options = dict(SHARED="none", SPOT="0", ACCELERATOR="v5litepod-4")
    out = place.start("tpu_pod.sh", "--print", *TRAIN, **options).stdout
    assert "mount" not in out and "--spot" not in out and "--accelerator-type=v5litepod-4" in out


def test_hard_words_reach_the_worker_whole(place):
    word = '--config.input.train=resize(32)|flip and it\'s "$HOME"'
    out = place.start("tpu_pod.sh", "--print", *TRAIN, word).stdout
    (line,) = [line for line in out.splitlines() if "--background" in line]
    remote = shlex.split(line)[-1].removeprefix("--command=")
    assert shlex.split(remote)[-1] == word


@pytest.mark.parametrize(
    ("script", "args", "environment", "said"),
    [
        ("tpu_pod.sh", TRAIN, {"NAME": ""}, "NAME is not set"),
        ("tpu_pod.sh", TRAIN, {"ZONE": ""}, "ZONE is not set"),
        ("tpu_pod.sh", TRAIN, {"SHARED": ""}, "SHARED is not set; name an NFS share"),
        ("tpu_pod.sh", TRAIN, {"ACCELERATOR": "v9-8"}, "the software of 'v9-8' is not known"),
        ("tpu_pod.sh", ("train",), {}, "give --workdir=runs/…"),
        ("tpu_pod.sh", ("train", "--workdir=/tmp/q"), {}, "give --workdir=runs/…"),
        ("tpu_pod.sh", (), {}, "give a dynadapt command to run"),
        ("gke_xpk.sh", ("train", "--workdir=/q"), {"CLUSTER": ""}, "CLUSTER is not set"),
        ("gke_xpk.sh", TRAIN, {}, "give --workdir=/…"),
        ("slurm.sbatch", (), {}, "give a dynadapt command to run"),
        ("worker.sh", (), {}, "give a dynadapt command to run"),
        ("vtab.sh", ("--methods=lora",), {}, "give --workdir=DIR"),
    ],
)
@pytest.mark.parametrize("showing", [True, False])
def test_what_is_missing_is_said(script, args, environment, said, showing, place):
    first = ["--print"] if showing else []
    result = place.start(script, *first, *args, code=1, **environment)
    assert said in result.stderr and result.stderr.startswith("dynadapt: ")
    assert result.stdout == "" and place.calls() == []


# GKE.


def test_a_workload_that_is_queued_is_waited_for(place):
    phases = place.programs / "phases"
    phases.write_text("\n\nPending\nPending Running\n")
    place.program("kubectl", f'[ "$1" != get ] || {{ head -n 1 {phases}; sed -i 1d {phases}; }}')
    place.start("gke_xpk.sh", "train", "--workdir=/share/q")
    calls = [call[:2] for call in place.calls("kubectl", "sleep")]
    get = ["kubectl", "get"]
    assert calls == [*[get, ["sleep", "10"]] * 3, get, ["kubectl", "logs"]]


def test_a_workload_that_stays_queued_is_told(place):
    options = dict(code=1, SECONDS="86500")  # which bash counts on from
    result = place.start("gke_xpk.sh", "train", "--workdir=/share/q", **options)
    assert result.stderr.startswith("dynadapt: no host of adapt has started in 24 hours; ")


# Slurm.

TASKS = """n=0; while [[ $1 == --* ]]; do shift; done; for number in 0 1 2; do
  SLURM_PROCID=$number SLURM_LOCALID=$((number % ${A_NODE:-2})) "$@" || n=$?
done; exit $n"""
JOB = dict(SLURM_JOB_ID="123", SLURM_JOB_NODELIST="node[7-8]", SLURM_NTASKS="3")
JOB |= dict(SLURM_STEP_NUM_NODES="2", SLURM_CPUS_PER_TASK="12", DYNADAPT="dynadapt")


@pytest.fixture
def slurm(place):
    place.program("srun", TASKS)
    place.program("scontrol", '[ "$1" != show ] || printf "node7\\nnode8\\n"')
    devices = "${CUDA_VISIBLE_DEVICES:-all} ${JAX_LOCAL_DEVICE_IDS:-own}"
    place.program("dynadapt", f'echo "$DYNADAPT_DISTRIBUTED {devices} $*"')
    return place


def test_tasks_of_slurm_are_one_run(slurm):
    copy = slurm.programs / "slurm_script"  # as Slurm does, away from the repository
    shutil.copy(LAUNCH / "slurm.sbatch", copy)
    job = dict(JOB, SLURM_SUBMIT_DIR=str(slurm.repository))
    result = slurm.start(copy, "train", "--workdir=a b", **job)
    lines = [f"node7:20123,3,{n} all own train --workdir=a b" for n in range(3)]
    assert result.stdout.splitlines() == lines
    calls = slurm.calls()
    assert ["scontrol", "show", "hostnames", "node[7-8]"] in calls
    (srun,) = (call for call in calls if call[0] == "srun")
    assert srun[1:3] == ["--cpus-per-task=12", "--kill-on-bad-exit=1"]


@pytest.mark.parametrize("what", ["vtab", "sweep"])
def test_tasks_of_a_sweep_run_alone(what, slurm):
    result = slurm.start("slurm.sbatch", what, "run", CUDA_VISIBLE_DEVICES="4,7", **JOB)
    assert result.stdout.splitlines() == [f"0 {gpu} own {what} run" for gpu in (4, 7, 4)]


@pytest.mark.parametrize(
    ("what", "gpus", "job", "taken"),
    [
        ("train", "4,7", {}, "4,7 own"),  # each sees those of its node, and JAX counts among them
        ("train", "GPU-8ab1", {}, "GPU-8ab1 0"),  # each sees its own
        ("sweep", "GPU-8ab1", {}, "GPU-8ab1 0"),
        ("train", "4,7", {"SLURM_STEP_NUM_NODES": "3", "A_NODE": "1"}, "4,7 0,1"),  # alone there
        ("sweep", "4,7", {"SLURM_STEP_NUM_NODES": "3", "A_NODE": "1"}, "4,7 0,1"),
    ],
)
def test_the_devices_that_slurm_gives_are_kept(what, gpus, job, taken, slurm):
    result = slurm.start("slurm.sbatch", what, CUDA_VISIBLE_DEVICES=gpus, **{**JOB, **job})
    assert [line.split()[1:3] for line in result.stdout.splitlines()] == [taken.split()] * 3


def test_more_tasks_than_devices(slurm):
    options = dict(JOB, A_NODE="3", CUDA_VISIBLE_DEVICES="4,7", code=1)
    assert "more tasks than the 2 GPUs" in slurm.start("slurm.sbatch", "train", **options).stderr


def test_a_job_that_was_stopped_is_queued_again(slurm):
    slurm.program("dynadapt", "exit 143")
    slurm.start("slurm.sbatch", "train", code=143, **JOB)
    assert slurm.calls("scontrol")[-1] == ["scontrol", "requeue", "123"]
    slurm.program("dynadapt", "exit 2")
    slurm.start("slurm.sbatch", "train", code=2, **JOB)
    assert ["scontrol", "requeue", "123"] not in slurm.calls("scontrol")


def test_a_sweep_and_its_report(place):
    local = place.repository / "launch" / "local.sh"
    local.write_text('#!/bin/bash\nexec dynadapt "$@"\n')
    options = ("--methods=lora", "--workdir=runs/v")
    place.start("vtab.sh", *options)
    want = [["dynadapt", *call[1:]] for call in shown(VTAB, "launch/local.sh")]
    assert place.calls() == want
    place.start("vtab.sh", *options, "--dry-run")
    assert place.calls() == [[*want[0], "--dry-run"]]


# One GPU.


def test_a_benchmark_that_fails_is_named_and_run_again(place):
    local = place.repository / "launch" / "local.sh"
    local.write_text('#!/bin/bash\nexec dynadapt "$@"\n')
    place.program("dynadapt", """case "$*" in *sam_b16*) [ -e sam ] ;; *) echo "{}" ;; esac""")
    first = place.start("gpu_bench.sh", code=1).stderr
    assert "would run at another start: forward_sam step_sam_b16_1024" in first
    calls = place.calls("dynadapt")
    assert calls[-1][1:3] == ["bench", "collect"] and len(calls) == 16
    answers = place.repository / "runs" / "benchmarks"
    assert len(list(answers.iterdir())) == 13 and not list(answers.glob("*sam*"))
    (place.repository / "sam").touch()
    place.start("gpu_bench.sh")
    again = place.calls("dynadapt")
    assert [call[2] for call in again] == ["forward", "step", "collect"]


@pytest.mark.parametrize("script", ["gpu_bench.sh", "versions.sh"])
def test_a_script_without_arguments_refuses_them(script, place):
    result = place.start(script, "--prnt", code=1)
    assert "not '--prnt'; the head of the script lists its settings" in result.stderr
    assert result.stdout == "" and place.calls() == []


# The document.

DOCUMENT = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
COMMANDS = [c for block in BLOCKS for c in re.sub(r"\\\n *", "", block).splitlines()]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--print" in c])
def test_commands_of_the_document_show_themselves(command, place):
    path = f"{place.programs}:{os.environ['PATH']}"
    shell = dict(cwd=place.repository, env={**os.environ, "PATH": path})
    result = subprocess.run(command, shell=True, capture_output=True, text=True, **shell)
    assert result.returncode == 0 and len(result.stdout.splitlines()) >= 2, result.stderr
    assert place.calls() == []


def test_the_document_shows_every_script():
    shown = " ".join(c for c in COMMANDS if "--print" in c)
    by_hand = {"local.sh", "test.sh", "docs.sh", "versions.sh"}
    for script in {*SCRIPTS} - {"install.sh", "steps.sh"} - by_hand:
        assert f"launch/{script} --print" in shown, script


# The worker.


@pytest.mark.slow
def test_a_worker_in_the_background(place):
    gate = place.programs / "gate"
    body = f"echo begun; while [ ! -e {gate} ]; do /bin/sleep 0.05; done; echo done; exit 3"
    place.program("dynadapt", body)
    place.start("worker.sh", "--background", "train", "a b", DYNADAPT="dynadapt")
    again = place.start("worker.sh", "--background", "train", "a b", DYNADAPT="dynadapt")
    assert "it runs already" in again.stderr
    gate.touch()
    assert place.start("worker.sh", "--follow", code=3).stdout == "begun\ndone\n"
    assert place.calls() == [["dynadapt", "train", "a b"]]
    place.start("worker.sh", "--background", "eval", DYNADAPT="dynadapt")
    place.start("worker.sh", "--follow", code=3)
    assert place.calls() == [["dynadapt", "eval"]]


def test_a_worker_that_was_killed_says_so(place):
    (place.repository / "worker.log").write_text("step 1\n")
    process = subprocess.Popen(["true"])
    process.wait()
    (place.repository / "worker.pid").write_text(f"{process.pid}\n")
    result = place.start("worker.sh", "--follow", code=1)
    assert "the command was killed; start it again" in result.stderr


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start_workers(tmp_path, options):
    """Two workers on this machine, as a Slurm job would start them; answers with their output."""
    program = tmp_path / "dynadapt"
    program.write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} -m dynadapt "$@"\n')
    program.chmod(0o755)
    port, workers = free_port(), []
    command = [str(LAUNCH / "worker.sh"), "train", f"--config={TINY}:method=lora,steps=4"]
    for number in range(2):
        env = {
            **os.environ,
            **{"DYNADAPT": str(program), "COORDINATOR": f"localhost:{port}"},
            **{"SLURM_NTASKS": "2", "SLURM_PROCID": str(number), "DYNADAPT_TIMEOUT": "60"},
        }
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        workers.append(subprocess.Popen([*command, *options], env=env, **pipes))
    try:
        outs = [worker.communicate(timeout=240) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0, 0], outs
    return outs


@pytest.mark.slow
def test_two_workers_train_and_go_on(tmp_path):
    work = tmp_path / "run"
    outs = start_workers(tmp_path, [f"--workdir={work}", "--json", "--config.save_every=2"])
    assert json.loads(outs[0][0]) == json.loads((work / "result.json").read_text())
    assert outs[1][0] == ""  # the first one answers
    assert json.loads((work / "config.json").read_text())["device"].startswith("2 x ")
    began = time.time()
    start_workers(tmp_path, [f"--workdir={work}", "--json", "--config.save_every=2"])
    trained = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert not [r for r in trained if r["kind"] == "train" and r["time"] > began]
