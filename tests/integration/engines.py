"""Real engines for the tests: the machine's own, and those of a Debian 13 that `debian.py` makes.

The machine's own are Docker Engine, and Podman as root and as an ordinary user. One that it already has is used as it
is; one that `scripts/setup` installed for the tests gets folders and a socket of its own, as those of Debian 13 do,
and leaves nothing behind. Either way the tests see a program: a small script that stands for the client and knows
where the engine is, so `--engine PROGRAM` is all that it takes to use it.

`python -m tests.integration.engines [FOLDER]` starts them all for trying things by hand, until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from tests.integration.debian import Entered
from tests.integration.images import Images, Unavailable

OWN = ("docker", "podman", "podman-rootless")
"""The machine's own: on Debian 12, Docker Engine 20.10 and Podman 4.3."""

TODAY = ("docker-26", "podman-5")
"""Docker Engine 26.1 and Podman 5.4, as root, in a Debian 13 of their own."""

NAMES = (*OWN, *TODAY)

BY_ROOT = ("docker", "podman", *TODAY)
"""Where rootless Podman does as Podman does."""

MACHINE = "machine"
"""The whole machine of test_machine.py is no engine, but tests run in it."""

PLACES = (MACHINE, "docker", "podman", *TODAY, "podman-rootless")
"""Where tests run, and in which order they begin there: the longest first."""

LABEL = "container-runner.run"
"""Every container of a run has it."""

USER = "container-runner-test"
"""The ordinary user that `scripts/setup` makes for rootless Podman; root borrows it."""

INSTALLED = Path("/var/lib/container-runner-tests/installed")
"""The packages that `scripts/setup` installed: an engine among them is for the tests alone."""

PROGRAMS = ("catatonit", "conmon", "containerd", "crun", "docker", "pasta", "podman", "runc", "slirp4netns")
"""How the names of an engine's processes begin."""

PODMAN_CONF = """\
# For machines where Podman's own defaults fail: no systemd, old cgroups, or no CAP_SYS_RESOURCE.
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


@attrs.frozen(kw_only=True)
class RealEngine:
    """An engine that runs containers."""

    name: str
    """One of NAMES."""

    binary: str
    """The path of the script that stands for the client."""

    owner: tuple[int, int]
    """The uid and gid that a workspace must belong to, so that the container's default user can write in it."""

    images: Images
    """Its images, by what they are for."""

    daemon: DockerDaemon | None = None
    """The daemon, if there is one and it is ours."""

    memory: tuple[Path, ...] = ()
    """The folders, side by side with its others, that lie in memory on a real machine; none if they are not ours."""

    @property
    def is_docker(self) -> bool:
        """Whether it is Docker Engine, and not Podman."""
        return self.name.startswith("docker")

    def run(self, *arguments: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run the client with these arguments.

        Raises:
            AssertionError: it failed, and `check` is true; the message holds what it wrote to stderr.
        """
        done = subprocess.run([self.binary, *arguments], check=False, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            msg = f"{self.name} {shlex.join(arguments)}: exit code {done.returncode}\n{done.stderr}"
            raise AssertionError(msg)
        return done

    def containers(self) -> list[str]:
        """The full ids of the containers of runs, whether they are running or not."""
        return self.run("ps", "--all", "--quiet", "--no-trunc", f"--filter=label={LABEL}").stdout.split()

    def remove(self, container: str) -> None:
        """Remove a container at once, whether it is running or not."""
        at_once = [] if self.is_docker else ["--time=0"]
        self.run("rm", "--force", "--volumes", *at_once, container)

    @property
    def daemon_pid(self) -> int:
        """The daemon's pid; a test that kills it calls `restart_daemon` afterwards.

        Raises:
            Unavailable: the daemon is not ours to touch, or there is none.
        """
        return self._own_daemon.pid

    def restart_daemon(self) -> None:
        """End the daemon if it runs, and start it again on the same folders."""
        self._own_daemon.stop()
        self._own_daemon.start()

    @property
    def _own_daemon(self) -> DockerDaemon:
        if self.daemon is None:
            msg = f"{self.name} has no daemon that a test may end"
            raise Unavailable(msg)
        return self.daemon


@attrs.define
class DockerDaemon:
    """A Docker Engine with folders, a socket and a network namespace of its own."""

    folder: Path

    within: Sequence[str] = ("unshare", "--net")
    """What stands before its command. Its bridges and iptables rules touch nothing of the machine's."""

    client: Sequence[str] = ("docker",)
    """The command of a client for it."""

    hosts: Sequence[str] = ()
    """More addresses that it listens on."""

    _process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """What DOCKER_HOST is to be."""
        return f"unix://{self.folder}/socket"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            Unavailable: it does not answer; the message holds the end of its log.
        """
        self.folder.mkdir(exist_ok=True)
        # If the last dockerd was killed, so was its containerd; as a zombie that nobody reaps it would look alive.
        (self.folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        log = self.folder / "log"
        namespace = f"container-runner-test-{os.getpid()}-{self.folder.name}"
        command = [
            *("setpriv", "--pdeathsig=TERM"),  # it ends with us, however we end
            *self.within,
            *("sh", "-c", 'ip link set lo up; exec "$@"', "sh"),
            "dockerd",
            *(f"--host={host}" for host in (self.host, *self.hosts)),
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
            # If the machine runs a containerd, dockerd uses that one: at least not with the same names.
            f"--containerd-namespace={namespace}",
            f"--containerd-plugins-namespace={namespace}-plugins",
        ]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._process = process
        wait_until(lambda: process.poll() is not None or self.answers(), seconds=60)
        if not self.answers():
            self.stop()
            msg = f"dockerd does not answer; the end of its log:\n{log.read_text(errors='replace')[-2000:]}"
            raise Unavailable(msg)

    def answers(self) -> bool:
        return docker_answers({**os.environ, "DOCKER_HOST": self.host}, self.client)

    def stop(self) -> None:
        """End it, and with it its containers."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@attrs.define
class Engines:
    """The engines of a session; each is started when it is first asked for."""

    folder: Path
    """Everything of ours is in it: new, empty, and on a path that anybody may walk."""

    _entered: Entered | None = attrs.field(default=None, init=False)
    _found: dict[str, RealEngine | Unavailable] = attrs.field(factory=dict, init=False)
    _at_end: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack, init=False)
    _left: list[str] = attrs.field(factory=list, init=False)

    def get(self, name: str) -> RealEngine:
        """The engine of this name, started.

        Raises:
            Unavailable: this machine has none, and none can be started; the message says why.
        """
        if name not in self._found:
            start = {
                "docker": self.docker,
                "podman": self._podman,
                "podman-rootless": self._podman_rootless,
                "docker-26": self._docker_of_today,
                "podman-5": self._podman_of_today,
            }[name]
            try:
                self._found[name] = start()
            except Unavailable as reason:
                self._found[name] = reason
        found = self._found[name]
        if isinstance(found, Unavailable):
            raise found
        return found

    def stop(self) -> list[str]:
        """End all that was started and delete the folder.

        Returns:
            What was still there of runs and of the engines, and should not have been. It is gone now.
        """
        self._at_end.close()
        wait_until(lambda: not processes_of(self.folder), seconds=30)
        for pid, command in processes_of(self.folder).items():
            self._left.append(f"the process {command}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount in mounts_below(self.folder):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.folder)
        return self._left

    def docker(self, *, private: bool = False) -> RealEngine:
        """Docker: the machine's own if it answers and `private` is false, else a daemon of ours."""
        client = find("docker")
        if not private and docker_answers(os.environ):
            return self._engine("docker", f"exec {client}", owner=ROOTFUL if is_root() else ourselves())
        if not is_root():
            msg = "no Docker Engine answers, and only root can start one"
            raise Unavailable(msg)
        find("dockerd")
        daemon = DockerDaemon(self.folder / "dockerd")
        engine = self._docker_of_ours("docker", client, daemon)
        return attrs.evolve(engine, memory=(daemon.folder / "exec",))

    def _docker_of_today(self) -> RealEngine:
        within = self._debian()
        client = [*within, "docker"]
        daemon = DockerDaemon(self.folder / "dockerd-26", within, client)
        return self._docker_of_ours("docker-26", shlex.join(client), daemon)

    def _docker_of_ours(self, name: str, client: str, daemon: DockerDaemon) -> RealEngine:
        daemon.start()
        self._at_end.callback(daemon.stop)
        # Without a configuration of the user's there are no proxies, and no context to win over DOCKER_HOST.
        script = f"export DOCKER_HOST={daemon.host} DOCKER_CONFIG={daemon.folder}/config\nexec {client}"
        return self._engine(name, script, owner=ROOTFUL, ours=True, daemon=daemon)

    def _podman(self) -> RealEngine:
        podman = find("podman")
        if not is_root():
            msg = "only root can run rootful Podman"
            raise Unavailable(msg)
        if "podman" not in installed_for_tests():
            return self._engine("podman", f"exec {podman}", owner=ROOTFUL)
        engine = self._podman_of_ours("podman", podman)
        state = self.folder / "libpodman"
        return attrs.evolve(engine, memory=(state / "run", state / "tmp"))

    def _podman_of_today(self) -> RealEngine:
        # It says with every command that cgroup v1 has had its day.
        return self._podman_of_ours(
            "podman-5", shlex.join([*self._debian(), "PODMAN_IGNORE_CGROUPSV1_WARNING=1", "podman"])
        )

    def _podman_of_ours(self, name: str, client: str) -> RealEngine:
        state = self.folder / f"lib{name}"
        folders = f"--root={state}/root --runroot={state}/run --tmpdir={state}/tmp --network-config-dir={state}/net"
        return self._engine(name, f"exec {client} {folders}", owner=ROOTFUL, ours=True)

    def _debian(self) -> list[str]:
        """What stands before a command that is to run in Debian 13."""
        if self._entered is None:
            self._entered = Entered.enter()
            self._at_end.callback(self._entered.leave)
        return self._entered.command

    def _podman_rootless(self) -> RealEngine:
        podman = find("podman")
        if not is_root():
            return self._engine("podman-rootless", f"exec {podman}", owner=ourselves())
        try:
            user = pwd.getpwnam(USER)
        except KeyError:
            msg = f"rootless Podman needs an ordinary user: run the tests as one, or make one named {USER}"
            raise Unavailable(msg) from None
        home = self.folder / "home"
        runtime = self.folder / "run"  # short: from 40 characters on Podman 4.3 takes 20 s to see a container end
        for path in (home, runtime):
            path.mkdir(mode=0o700)
            os.chown(path, user.pw_uid, user.pw_gid)
        # Where there is no storage.conf the driver is vfs, and each container gets a whole copy of its image.
        script = f"""\
export HOME={home} XDG_RUNTIME_DIR={runtime} STORAGE_DRIVER=overlay
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME DBUS_SESSION_BUS_ADDRESS
cd {home}
exec setpriv --reuid={user.pw_uid} --regid={user.pw_gid} --clear-groups {podman}"""
        self._at_end.callback(end_process_of, runtime / "libpod/tmp/pause.pid")
        return self._engine("podman-rootless", script, owner=(user.pw_uid, user.pw_gid), ours=True)

    def _engine(
        self,
        name: str,
        script: str,
        *,
        owner: tuple[int, int],
        ours: bool = False,
        daemon: DockerDaemon | None = None,
    ) -> RealEngine:
        """Write the script, see that a container runs, and that at the end no container is left."""
        program = self.folder / name
        write_program(program, script)
        engine = RealEngine(name=name, binary=str(program), owner=owner, images=Images(str(program)), daemon=daemon)
        before = set[str]() if ours else {*engine.containers()}
        self._at_end.callback(self._clean, engine, before, ours=ours)
        conf = self.folder / "containers.conf"
        if not engine.is_docker and podman_needs(conf, engine.binary, engine.images.tiny):
            write_program(program, f"export CONTAINERS_CONF={conf}\n{script}")
        return engine

    def _clean(self, engine: RealEngine, before: set[str], *, ours: bool) -> None:
        if engine.daemon is not None and not engine.daemon.answers():
            return  # a test killed it
        try:
            left = {*engine.containers()} - before
            self._left += [f"the container {container} of {engine.name}" for container in sorted(left)]
            for container in engine.run("ps", "--all", "--quiet").stdout.split() if ours else left:
                engine.remove(container)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self._left.append(f"whatever {engine.name} could not list or remove: {error}")
        if not ours:
            for image in engine.images.imported:
                engine.run("rmi", image, check=False)


ROOTFUL = (1000, 1000)


def is_root() -> bool:
    return os.geteuid() == 0


def ourselves() -> tuple[int, int]:
    return os.getuid(), os.getgid()


def find(program: str) -> str:
    """The path of a program.

    Raises:
        Unavailable: it is not on PATH.
    """
    if (path := shutil.which(program)) is None:
        msg = f"{program} is not installed"
        raise Unavailable(msg)
    return path


def installed_for_tests() -> list[str]:
    """The packages that `scripts/setup` installed on this machine."""
    return INSTALLED.read_text().split() if INSTALLED.exists() else []


@functools.cache
def is_ours(name: str) -> bool:
    """Whether the machine's docker or podman is there for the tests alone, and so may be started more than once."""
    return is_root() and {"docker": "docker.io", "podman": "podman"}[name] in installed_for_tests()


def docker_answers(environment: Mapping[str, str], client: Sequence[str] = ("docker",)) -> bool:
    """Whether the docker client finds a Docker Engine (and is not Podman under docker's name)."""
    with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [*client, "version"], check=False, capture_output=True, text=True, env=environment, timeout=60
        )
        return done.returncode == 0 and "podman" not in done.stdout.lower()
    return False


def podman_needs(conf: Path, podman: str, image: str) -> bool:
    """Whether Podman runs a container only with this containers.conf, which is then written.

    Raises:
        Unavailable: it does not run one with it either; the message holds what it said.
    """
    told = ""
    # If the file is there it was needed before, and a second look may cost twenty seconds.
    for needed in (True,) if conf.exists() else (False, True):
        environment = dict(os.environ)
        if needed:
            conf.write_text(PODMAN_CONF)
            conf.chmod(0o644)
            environment["CONTAINERS_CONF"] = str(conf)
        command = [podman, "run", "--rm", "--network=none", image, "true"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode == 0:
            return needed
        told += done.stderr
    msg = f"Podman runs no container, with {conf} or without:\n{told}"
    raise Unavailable(msg)


def write_program(path: Path, script: str) -> None:
    """Write a script that hands its arguments on to its last command, which takes its place."""
    path.write_text(f'#!/bin/sh\n{script} "$@"\n')
    path.chmod(0o755)


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    """Wait until it is so, but not longer than this."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def processes_of(folder: Path) -> dict[int, str]:
    """The processes of engines that were started for this folder, as pid and command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended, or it is another user's
                command, environment = ((entry / file).read_bytes() for file in ("cmdline", "environ"))
                program = Path(os.fsdecode(command.split(b"\0")[0])).name
                if program.startswith(PROGRAMS) and os.fsencode(folder) in command + environment:
                    found[int(entry.name)] = shlex.join(os.fsdecode(command).rstrip("\0").split("\0"))
    return found


def end_process_of(pid_file: Path) -> None:
    """End the process whose pid the file holds, if there is one."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int(pid_file.read_text()), signal.SIGTERM)


def mounts_below(folder: Path) -> list[str]:
    """The mount points in a folder, the innermost first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True)


def serve(folder: Path) -> None:
    """Start all engines, tell where they are in the folder's file READY, and stop them at Ctrl-C or TERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        folder.mkdir(mode=0o755)
    except OSError as error:
        sys.exit(f"{folder} can not be made: {error.strerror}. Name a folder that is not there yet.")
    engines = Engines(folder)
    started = []
    try:
        with (folder / "READY.part").open("w") as ready:
            for name in NAMES:
                try:
                    engine = engines.get(name)
                except Unavailable as reason:
                    print(f"no {name}: {reason}", file=ready)
                else:
                    started.append(engine)
                    line = f"{engine.binary}  image {engine.images.tiny}  workspace owner {engine.owner}"
                    print(line, file=ready)
        print((folder / "READY.part").rename(folder / "READY").read_text(), end="", flush=True)
        for engine in started:
            with contextlib.suppress(Unavailable):
                print(f"{engine.name} has the image {engine.images.claude} too.", flush=True)
        print("Ctrl-C stops them.", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("Stopping.", flush=True)
    finally:
        for left in engines.stop():
            print(f"There was still {left}.")


if __name__ == "__main__":
    serve(Path(sys.argv[1] if len(sys.argv) > 1 else "/tmp/cr-engines"))
