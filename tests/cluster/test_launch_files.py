"""What launch/ holds can be read by those whom it is for, and says what it must."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from held import HERE, LAUNCH

from selfdistill.errors import DataBudgetError, HealthError, Preempted, UserError
from selfdistill.models.block import Block

CONFIGS = sorted(path.name for path in LAUNCH.glob("*.yaml") if path.name != "kubernetes.yaml")
SCRIPTS = [*LAUNCH.glob("*.sh"), *HERE.glob("*.sh")]


def read(name: str) -> ClusterConfig:
    return load_config_from_file(str(LAUNCH / name))


def environment(name: str, *options: str) -> dict[str, str]:
    """What ``accelerate launch`` with a config tells the processes."""
    words = ["--config_file", str(LAUNCH / name), *options, "-m", "selfdistill"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.num_processes == 1:
        return prepare_simple_launcher_cmd_env(arguments)[1]
    found = prepare_multi_gpu_env(arguments)
    assert (arguments.multi_gpu, arguments.use_fsdp) in [(True, False), (False, True)]
    torchrun = ("nnodes", "node_rank", "nproc_per_node", "rdzv_endpoint")
    return found | {name: str(getattr(arguments, name, None)) for name in torchrun}


def test_every_config_is_here() -> None:
    assert CONFIGS == ["cpu.yaml", "ddp.yaml", "fsdp.yaml", "multi_node.yaml", "single_gpu.yaml"]


@pytest.mark.parametrize("name", CONFIGS)
def test_accelerate_reads_it(name: str) -> None:
    config = read(name)
    # train.precision of the run's config is what counts; accelerate would warn of another
    assert config.mixed_precision == "no"
    assert config.use_cpu == (name == "cpu.yaml")


def test_cpu() -> None:
    assert environment("cpu.yaml")["ACCELERATE_USE_CPU"] == "True"


def test_ddp() -> None:
    assert environment("ddp.yaml")["nproc_per_node"] == "8"


@pytest.mark.parametrize("name", ["multi_node.yaml", "fsdp.yaml"])
def test_several_nodes(name: str) -> None:
    options = ["--num_machines=3", "--num_processes=24", "--machine_rank=1"]
    found = environment(name, *options, "--main_process_ip=node0", "--main_process_port=29500")
    assert (found["nnodes"], found["node_rank"], found["nproc_per_node"]) == ("3", "1", "8")
    assert found["rdzv_endpoint"] == "node0:29500"


def test_two_nodes() -> None:
    found = environment("multi_node.yaml", "--machine_rank=1", "--main_process_ip=node0")
    assert (found["nnodes"], found["nproc_per_node"]) == ("2", "8")
    assert found["rdzv_endpoint"] == "node0:29500"


def plugin(variables: Mapping[str, str], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """accelerate's plugin, made by the environment."""
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        patch.delenv(name)
    for name, value in variables.items():
        if name.startswith("FSDP_"):
            patch.setenv(name, value)
    made = vars(FullyShardedDataParallelPlugin())
    # of these, every plugin has its own
    return {key: str(value).partition(" at 0x")[0] for key, value in made.items()}


def env_file() -> dict[str, str]:
    lines = (LAUNCH / "fsdp.env").read_text().splitlines()
    return dict(line.split("=") for line in lines if not line.startswith("#"))


def test_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2, wrapped block by block; the file for other launchers comes to the same."""
    launched = environment("fsdp.yaml")
    assert launched["ACCELERATE_USE_FSDP"] == env_file()["ACCELERATE_USE_FSDP"] == "true"
    found = plugin(launched, monkeypatch)
    assert found["fsdp_version"] == "2"
    assert found["reshard_after_forward"] == "True"
    assert found["transformer_cls_names_to_wrap"] == str([Block.__name__])
    assert found["cpu_ram_efficient_loading"] == found["activation_checkpointing"] == "False"
    assert plugin(env_file(), monkeypatch) == found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts(path: Path) -> None:
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", path], check=True)


# the fields that the manifest may have: a type, a mapping of fields, or a list of one thing
SELECTOR = {"batch.kubernetes.io/job-name": str}
META = {"name": str}
EXIT_CODES = {"containerName": str, "operator": str, "values": [int]}
RULE = {"action": str, "onExitCodes": EXIT_CODES, "onPodConditions": [{"type": str}]}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str}],
    "resources": {"limits": {"nvidia.com/gpu": str}},
    "volumeMounts": [{"name": str, "mountPath": str}],
}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str},
    "emptyDir": {"medium": str},
}
POD = {
    "subdomain": str,
    "restartPolicy": str,
    "terminationGracePeriodSeconds": int,
    "containers": [CONTAINER],
    "volumes": [VOLUME],
}
JOB = {
    "completionMode": str,
    "completions": int,
    "parallelism": int,
    "backoffLimit": int,
    "podReplacementPolicy": str,
    "podFailurePolicy": {"rules": [RULE]},
    "template": {"spec": POD},
}
SERVICE = {"clusterIP": str, "publishNotReadyAddresses": bool, "selector": SELECTOR}


def check(found: Any, schema: Any, where: str) -> None:
    """Refuse unknown fields and values of another type."""
    if isinstance(schema, list):
        assert isinstance(found, list), where
        for number, item in enumerate(found):
            check(item, schema[0], f"{where}[{number}]")
    elif isinstance(schema, dict):
        assert isinstance(found, dict), where
        assert set(found) <= set(schema), where
        for key, value in found.items():
            check(value, schema[key], f"{where}.{key}")
    else:
        assert type(found) is schema, where


def manifest() -> tuple[dict[str, Any], dict[str, Any]]:
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    return service, job


def test_manifest_has_known_fields() -> None:
    tops = {"apiVersion": str, "kind": str, "metadata": META}
    for found, spec in zip(manifest(), (SERVICE, JOB), strict=True):
        check(found, {**tops, "spec": spec}, found["kind"])


def test_manifest_fits_together() -> None:
    service, job = manifest()
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    arguments = container["args"]
    assert spec["completions"] == spec["parallelism"]
    assert f"--nnodes={spec['completions']}" in arguments
    assert f"--master-addr={name}-0.{pod['subdomain']}" in arguments
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in arguments
    assert {each["name"] for each in container["volumeMounts"]} == {
        each["name"] for each in pod["volumes"]
    }


def test_manifest_knows_the_exit_codes() -> None:
    _, job = manifest()
    spec = job["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # or the policy is refused
    assert spec["podReplacementPolicy"] == "Failed"
    by_code = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule and rule["onExitCodes"]["operator"] == "In"
        for code in rule["onExitCodes"]["values"]
    }
    final = (UserError, HealthError, DataBudgetError)
    assert by_code == {Preempted.exit_code: "Ignore"} | {
        error.exit_code: "FailJob" for error in final
    }
    (container,) = spec["template"]["spec"]["containers"]
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
        else:
            assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
