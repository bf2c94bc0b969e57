"""A private, real SLURM on the loopback interface: munged, slurmctld and one slurmd, all of it in one folder.

With ``accounting`` also slurmdbd and its database, as most sites have them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

# `--sdm env-modules` stands for "no conda": no rule names a module.
QUICK = ("--profile", "slurm", "--sdm", "env-modules", "--slurm-init-seconds-before-status-checks", "5")
SERVERS = ("munged", "slurmctld", "slurmd")
ACCOUNTING = ("mariadb-install-db", "mariadbd", "slurmdbd")

SLURM_CONF = """
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# No cgroups, which a container may not have: memory is then watched by polling.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 Gres=gpu:2
PartitionName=main Nodes=node Default=YES MaxTime=1440 PriorityTier=1
PartitionName=urgent Nodes=node MaxTime=1440 PriorityTier=2
"""

SLURM_CONF_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=gres/gpu
"""

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""

# Two devices that exist everywhere stand for GPUs: SLURM schedules them, and hands out CUDA_VISIBLE_DEVICES.
GRES_CONF = "NodeName=node Name=gpu Count=2 File=/dev/zero,/dev/null\n"


def missing(accounting: bool = False) -> str:
    """Why no cluster can be started here, or nothing."""
    if os.geteuid() != 0:
        return "a private SLURM needs root"
    needed = {"slurm-wlm munge": (*SERVERS, "sbatch"), "slurmdbd mariadb-server": ACCOUNTING if accounting else ()}
    for packages, programs in needed.items():
        if absent := [name for name in programs if not shutil.which(name, path=search_path())]:
            return f"not installed: {', '.join(absent)} (Debian: apt-get install {packages})"
    return ""


def search_path() -> str:
    """PATH with the folders of system daemons."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


class Cluster:
    """Started on entry and wholly stopped on exit. ``environment`` is for processes that shall see it."""

    def __init__(self, folder: Path, accounting: bool = False) -> None:
        self.folder, self.accounting = folder, accounting
        path = os.pathsep.join([str(folder / "bin"), search_path()])
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
        self.servers: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        for name in ("state", "spool", "bin"):
            (self.folder / name).mkdir()
        # Snakemake's plugin takes SLURM_CONF out of the environment of srun; on a usual cluster nobody sets it.
        srun = self.folder / "bin/srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        ports = free_ports(4)
        (self.folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                host=socket.gethostname().split(".")[0],
                folder=self.folder,
                controller_port=ports[0],
                daemon_port=ports[1],
            )
        )
        if self.accounting:
            with (self.folder / "slurm.conf").open("a") as file:
                file.write(SLURM_CONF_ACCOUNTING.format(folder=self.folder, port=ports[2]))
        (self.folder / "gres.conf").write_text(GRES_CONF)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        places = {"socket": "munge.socket", "key-file": key.name, "pid-file": "munged.pid", "seed-file": "munge.seed"}
        places["log-file"] = "munged.log"
        try:
            self.start("munged", "--foreground", "--force", *(f"--{k}={self.folder / v}" for k, v in places.items()))
            wait_until((self.folder / "munge.socket").exists, 10, "munged to listen")
            if self.accounting:
                self.start_accounting(*ports[2:])
            self.start("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
            self.start("slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", "node")
            wait_until(lambda: self.node_state() == "idle", 30, "the node to be idle")
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_accounting(self, port: int, database_port: int) -> None:
        """A database of its own, and slurmdbd in front of it, which knows the cluster."""
        data, setup = self.folder / "database", self.folder / "setup.sql"
        account = "slurm@'127.0.0.1'"
        setup.write_text(f"CREATE USER {account} IDENTIFIED BY 'slurm';\nGRANT ALL ON slurm.* TO {account};\n")
        self("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-name-resolve")
        options = {"datadir": data, "socket": self.folder / "database.socket", "pid-file": self.folder / "database.pid"}
        options |= {"bind-address": "127.0.0.1", "port": database_port, "init-file": setup}
        settings = (f"--{key}={value}" for key, value in options.items())
        self.start("mariadbd", "--no-defaults", "--user=root", "--skip-name-resolve", *settings)
        wait_until(lambda: answers(database_port), 30, "the database to listen")
        configuration = self.folder / "slurmdbd.conf"
        configuration.write_text(SLURMDBD_CONF.format(folder=self.folder, port=port, database_port=database_port))
        configuration.chmod(0o600)
        self.start("slurmdbd", "-D")
        wait_until(lambda: answers(port), 60, "slurmdbd to listen")
        self("sacctmgr", "--immediate", "add", "cluster", "private")

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self("scancel", "--state=RUNNING,PENDING,SUSPENDED", "--user=root", "--full", "--signal=KILL", status=None)
            wait_until(lambda: not self("squeue", "--noheader"), 10, "the jobs to end")
        for server in reversed(self.servers):
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def start(self, *command: str) -> None:
        """Start a server; its output goes to ``<name>.out`` in the folder."""
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            self.servers.append(
                subprocess.Popen(
                    command,
                    executable=shutil.which(command[0], path=search_path()),
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )

    def __call__(self, *command: str, status: int | None = 0) -> str:
        """What a client command such as ``squeue`` prints; fails unless it exits with ``status`` (None: any)."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert status is None or result.returncode == status, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout.strip()

    def node_state(self) -> str:
        """Such as ``idle``, ``mixed`` or ``down``; empty while the controller does not answer."""
        return self("sinfo", "--noheader", "--format=%T", "--partition=main", status=None)


def answers(port: int) -> bool:
    """Whether somebody listens on this port of the loopback interface."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll until ``condition()`` is true; raises TimeoutError that names ``what`` it waited for."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """TCP ports of the loopback interface that nobody uses at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for it in sockets:
            it.bind(("127.0.0.1", 0))
        return [it.getsockname()[1] for it in sockets]
