"""Several processes: they meet, train what one trains, and none outlives another unnoticed."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

for module in ("tyro", "rich", "matplotlib", "safetensors", "sklearn", "orbax.checkpoint"):
    pytest.importorskip(module)

import jaxbp
from jaxbp import cli, liveness, processes
from jaxbp.liveness import JoinError, Link, Watch

slow = pytest.mark.slow
FULL = ["iris", "--hidden", "--optimizer", "momentum", "--batch-size", "full"]  # compiles fast
FULL += ["--checkpoint-every", "5", "--epochs", "100"]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def hello(process, **other):
    return processes.hello_of(process, 2, "") | other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--process 1", "--process: got 1, and no coordinator, where process 0 listens"),
        ("--processes 2", "--processes: got 2, and no coordinator, where process 0 listens"),
        ("--listen 0.0.0.0", "--listen: got 0.0.0.0, and no coordinator"),
        ("--coordinator here", "--coordinator: got here, expected HOST:PORT"),
        ("--coordinator here:99999", "--coordinator: got here:99999, expected HOST:PORT"),
        ("--coordinator here:1", "--processes: got None, expected a number from 1"),
        ("--coordinator here:1 --processes 0", "--processes: got 0, expected a number from 1"),
        ("--coordinator here:1 --processes 2", "--process: got None, expected a number from 0"),
        (
            "--coordinator here:1 --processes 2 --process 2",
            "--process: got 2, expected 0 to 1: there are 2",
        ),
        (
            "--distributed --coordinator here:1",
            "--distributed: got it beside --coordinator; it is for what a cluster tells by itself",
        ),
    ],
)
def test_options_that_do_not_fit_are_told(arguments, message, capsys):
    assert cli.main(["train", "iris", *arguments.split()]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_processes_that_do_not_meet_are_told():
    port = free_port()
    with pytest.raises(JoinError, match=rf"process 0 does not answer at 127.0.0.1:{port} within"):
        liveness.called("127.0.0.1", port, hello(1), 0.1)
    with liveness.listening("127.0.0.1", port) as listener:
        with pytest.raises(JoinError, match=rf"process 0 cannot listen at 127.0.0.1:{port} \(Addr"):
            processes.welcomed(hello(0), "127.0.0.1", port, 0.1)
        with pytest.raises(JoinError, match=r"process 1 of 2 has not joined at 127.0.0.1:\d+ with"):
            liveness.awaited(listener, hello(0), 0.1)
    with pytest.raises(ValueError, match="patience: got 0, expected seconds"):
        next(processes.joined(patience=0).gen)


def test_process_0_refuses_what_does_not_belong():
    refusals = []
    with liveness.listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]

        def call():
            strangers = {"process": 1}, hello(1, versions="jax 0"), hello(0), hello(2)
            for each in (*strangers, hello(1, secret="of another job")):
                with pytest.raises(JoinError) as refused:
                    liveness.called("127.0.0.1", port, each, 10.0)
                refusals.append(str(refused.value).partition("refuses: ")[2])
            with pytest.raises(JoinError, match="ended before all processes were there"):
                liveness.called("127.0.0.1", port, hello(1), 10.0)

        caller = threading.Thread(target=call)
        caller.start()
        links, hellos = liveness.awaited(listener, hello(0), 10.0)
        links[1].connection.close()
        caller.join()
    own = hello(0)
    assert hellos == {0: own, 1: hello(1)}
    assert refusals == [
        "this is the port of a training by jaxbp",
        f"versions: jax 0 here and {own['versions']} there",
        f"process 0 is there already, on {own['host']}, pid {own['pid']}",
        "process: got 2",
        "secret: another one",
    ]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, "process 1 of 2 (there, pid 7) is gone"),
        ({"ended": "ValueError: x"}, "process 1 of 2 (there, pid 7) ended by ValueError: x"),
        ({"lost": "process 5 is gone"}, "process 5 is gone"),
    ],
)
def test_a_process_that_is_gone_is_named(said, told):
    ours, theirs = socket.socketpair()
    watch = Watch({1: Link(ours)}, {0: {}, 1: {"host": "there", "pid": 7}})
    Link(theirs).say(alive=True)
    assert not watch.lost_within(0.05)
    if said:
        Link(theirs).say(**said)
    theirs.close()
    assert watch.lost_within(10.0) == told
    watch.close()  # in less than the grace that this process has


def test_one_that_says_it_is_done_may_go():
    ours, theirs = socket.socketpair()
    watch = Watch({1: Link(ours)}, {0: {}, 1: {"host": "there", "pid": 7}})
    Link(theirs).say(done=True)
    theirs.close()
    assert not watch.lost_within(0.5)
    watch.close()


class Together:
    """The processes of a command ``jaxbp train``, each with one device."""

    def __init__(self, python, count, *arguments):
        self.port = free_port()
        place = "--coordinator", f"127.0.0.1:{self.port}", "--processes", count, "--process"
        self.started = [
            python("-m", "jaxbp", "train", *arguments, *place, number) for number in range(count)
        ]

    def ended(self, *statuses):
        each = zip(self.started, statuses, strict=True)
        return [process.ended(status) for process, status in each]


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def params_of(run):
    return [np.asarray(leaf) for layer in jaxbp.load(run).params for leaf in layer]


@slow
def test_the_command_trains_by_two_processes_what_one_trains(on_cpu, monkeypatch, tmp_path, capfd):
    """As the page has it printed."""
    page = (Path(__file__).parents[1] / "docs" / "several_machines.md").read_text()
    script = re.search(r"```sh\n(.+?)```", page, re.DOTALL)[1].replace("7000", f"{free_port()}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(jaxbp.__file__).parents[1]))
    script = script.replace("jaxbp ", f"{shlex.quote(sys.executable)} -m jaxbp ")
    subprocess.run(["bash", "-e", "-c", script], check=True, timeout=600)
    printed = capfd.readouterr()
    assert printed.out.count("saved in run\n") == 1
    assert "Gloo" not in printed.out + printed.err
    assert cli.main(["train", "iris", "--epochs", "5", "--output", "one"]) == 0
    for one, two in zip(params_of("one"), params_of("run"), strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=2e-6)  # float32, after 15 steps
    names = [{path.name for path in Path(run).iterdir()} for run in ("one", "run")]
    assert names[0] == names[1]
    assert cli.main(["train", "--resume", "run"]) == 0  # alone, and complete
    assert "run is complete: it has trained 5 epochs" in capfd.readouterr().out


@slow
def test_two_processes_stream_what_one_streams(python, on_cpu, tmp_path, monkeypatch):
    """Each reads its own rows, of a first pass too; one alone goes on with the run, in a pass."""
    pytest.importorskip("grain")
    shards, rng = tmp_path / "shards", np.random.default_rng(0)
    shards.mkdir()
    for number in range(3):
        x = rng.normal(3, 2, (1000 + number, 4))
        np.save(shards / f"{number}.npy", np.column_stack([x, x[:, 0] > 3]).astype(np.float32))
    options = shards, "--schedule", "constant", "--epoch-rows", "700", "--batch-size", "31"
    run, alone = tmp_path / "run", tmp_path / "alone"
    both = Together(python, 2, *options, "--epochs", "2", "--output", run).ended(0, 0)
    assert "1,9" in both[0][0]
    assert both[1] == ("", "")
    assert cli.main(["train", "--resume", str(run), "--epochs", "4"]) == 0
    assert cli.main(["train", *map(str, options), "--epochs", "4", "--output", str(alone)]) == 0
    for one, other in zip(params_of(alone), params_of(run), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-5)  # float32, after 90 steps
    too_few = [*options[:-1], "1"]
    message = "jaxbp: --batch-size: got 1, expected at least a row for each of 2 processes"
    for _, told in Together(python, 2, *too_few).ended(2, 2):
        assert told.splitlines()[-1] == message


@slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_and_the_run_goes_on(
    victim, python, on_cpu, tmp_path
):
    run = tmp_path / "run"
    both = Together(python, 2, *FULL, "--output", run)
    metrics = run / "metrics.jsonl"
    of_first = both.started[0]
    of_first.until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 10)
    both.started[victim].process.send_signal(signal.SIGKILL)
    expected = [1, 1]
    expected[victim] = -signal.SIGKILL
    told = both.ended(*expected)[1 - victim][1].splitlines()[-1]
    pid = both.started[victim].process.pid
    assert told == f"jaxbp: process {victim} of 2 ({socket.gethostname()}, pid {pid}) is gone"
    assert cli.main(["train", "--resume", str(run)]) == 0
    alone = tmp_path / "alone"
    assert cli.main(["train", *FULL, "--output", str(alone)]) == 0
    for one, other in zip(params_of(alone), params_of(run), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)  # float32, after 100 steps


@slow
def test_what_one_process_is_asked_all_do(python, on_cpu, sigint, tmp_path):
    run = tmp_path / "run"
    both = Together(python, 2, *FULL[:-1], "100000", "--output", run)
    metrics = run / "metrics.jsonl"
    both.started[0].until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 10)
    both.started[1].process.send_signal(signal.SIGTERM)
    (printed, _) = both.ended(143, 143)
    assert "interrupted: training ended with epoch" in printed[0]
    assert (run / "model.safetensors").exists()


@slow
def test_processes_that_would_train_different_things_are_refused(python, on_cpu, tmp_path):
    port = free_port()
    place = "--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process"
    both = [
        python("-m", "jaxbp", "train", *FULL, *place, number, "--learning-rate", rate)
        for number, rate in enumerate((0.1, 0.2))
    ]
    for each in both:
        message = "jaxbp: --learning-rate: not the same in all processes"
        assert each.ended(2)[1].splitlines() == [message]


@slow
def test_what_slurm_tells_is_found(python, on_cpu, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    started = []
    for number in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        monkeypatch.setenv("SLURM_LOCALID", str(number))
        command = "train", "--distributed", *FULL, "--output", tmp_path / "run"
        started.append(python("-m", "jaxbp", *command))
    printed = [each.ended() for each in started]
    assert "saved in" in printed[0][0]
    assert printed[1][0] == ""


@slow
def test_no_cluster_is_told(python, on_cpu):
    told = python("-m", "jaxbp", "train", "iris", "--distributed").ended(2)[1]
    assert "jaxbp: JAX finds no cluster by itself here, such as Slurm" in told.splitlines()[-1]
