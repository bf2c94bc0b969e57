"""The conda environment of the rules is uv.lock in another notation."""

import re
import tomllib

import yaml
from helpers import REPOSITORY, script


def test_every_pin_is_that_of_the_lock_and_nothing_is_left_open():
    locked = {
        (package["name"], package["version"])
        for package in tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"]
    }
    *base, packages = yaml.safe_load((REPOSITORY / "envs/sat-core.yaml").read_text())["dependencies"]
    assert all(re.fullmatch(r"[a-z]+=[0-9.]+", pin) for pin in base)
    pins = [re.fullmatch(r"([a-z0-9._-]+)==([^ ;]+)( ; .+)?", pin) for pin in packages["pip"]]
    assert {(pin[1], pin[2]) for pin in pins} <= locked
    wanted = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.match(r"[a-z0-9-]+", name)[0] for name in wanted} <= {pin[1] for pin in pins}


def test_the_committed_environment_is_what_make_envs_writes():
    assert (REPOSITORY / "envs/sat-core.yaml").read_text() == script("envs/refresh.py").content(), "run `make envs`"
