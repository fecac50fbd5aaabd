# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""The launcher's configurations: accelerate reads them, and they start what their names say."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env


ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "training" / "accelerate").glob("*.yaml"))
SBATCH = ROOT / "training" / "slurm" / "train.sbatch"
# Processes, machines, precision and type of each.
EXPECTED = {
    "cpu_2": (2, 1, "no", DistributedType.MULTI_GPU),
    "ddp_2x8gpu": (16, 2, "bf16", DistributedType.MULTI_GPU),
    "ddp_8gpu": (8, 1, "bf16", DistributedType.MULTI_GPU),
    "fsdp2_8gpu": (8, 1, "bf16", DistributedType.FSDP),
}


def parsed(*words):
    """The arguments of `accelerate launch`, as it has them just before it starts processes."""
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*words, "train.py"]))
    return args


def test_every_configuration_is_known_here():
    assert [path.stem for path in CONFIGS] == sorted(EXPECTED)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_starts_what_its_name_says(path):
    config = load_config_from_file(str(path))  # refuses unknown keys
    processes, machines, precision, kind = EXPECTED[path.stem]
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (processes, machines, precision)
    assert config.distributed_type is kind
    args = parsed("--config_file", str(path))
    assert args.use_fsdp == (kind is DistributedType.FSDP) and args.multi_gpu == (not args.use_fsdp)
    environment = prepare_multi_gpu_env(args)
    assert environment["ACCELERATE_MIXED_PRECISION"] == precision
    assert args.nproc_per_node == str(processes // machines)


def test_the_sharded_configuration_is_fsdp2_with_the_models_own_blocks():
    environment = prepare_multi_gpu_env(parsed("--config_file", str(ROOT / "training/accelerate/fsdp2_8gpu.yaml")))
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"


def test_a_misspelt_key_would_be_noticed(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIGS[0].read_text() + "num_proceses: 2\n")
    with pytest.raises(ValueError, match="num_proceses"):
        load_config_from_file(str(path))


def test_the_slurm_script_starts_one_launcher_a_machine_with_its_rank(tmp_path):
    """`srun` is a function that shows what a task would run; SLURM's variables are those of the second of two machines."""
    stubs = 'srun() { for word in "$@"; do printf "%s\\n" "$word"; done; }\nscontrol() { echo gpu-7; echo gpu-8; }\n'
    environment = {
        "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "gpu-[7-8]", "SLURM_NODEID": "1",
        "SLURM_JOB_ID": "41", "PATH": "/usr/bin:/bin",
    }  # fmt: skip
    script = tmp_path / "job.sh"
    script.write_text(stubs + SBATCH.read_text())
    result = subprocess.run(
        ["bash", str(script), "softmax1", "c4_gpt2_350m", "runs/c4", "--seed", "1"],
        env=environment, capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    words = result.stdout.splitlines()
    shell = words[words.index("-c") + 1]  # what each task runs, where SLURM_NODEID is its own
    command = shlex.split(shell.replace("$SLURM_NODEID", environment["SLURM_NODEID"]))
    assert command[:2] == ["accelerate", "launch"]
    args = launch_command_parser().parse_args(command[2:])
    args, _, _ = _validate_launch_command(args)
    assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, 1) and args.multi_gpu
    assert (args.main_process_ip, args.mixed_precision) == ("gpu-7", "bf16")
    assert args.training_script == "training/softmax1/train.py"
    assert args.training_script_args == [
        "--config", "training/softmax1/c4_gpt2_350m.yaml", "--output_dir", "runs/c4", "--seed", "1",
    ]  # fmt: skip
    prepare_multi_gpu_env(args)
    assert args.nproc_per_node == "8" and args.node_rank == 1


def test_the_slurm_script_asks_for_one_task_a_machine():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", SBATCH.read_text(), re.MULTILINE))
    assert options["nodes"] == "2" and options["ntasks-per-node"] == "1" and options["gpus-per-node"] == "8"
