"""The small process beside the library that runs code, one guarded process per run.

It is started with an empty environment and holds nothing but this module. For each run
it forks a guard, which builds the walls, waits, kills and reports:

    library -- keeper -- guard -- first -- code      in namespaces of its own
                         guard -- code               else

`first` is the first process of a process namespace: when it ends, the kernel kills all
others in it. The code can see neither guard nor keeper there. Else the guard adopts
what the code leaves behind, and kills that.

The library sends open files along with each request, and speaks with the guard over two
of them: `control`, which brings the job and by whose end the guard knows that it is to
kill, and `report`.
"""

import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from emoreg.behavior.sandbox import answers, asking, walls

Job = dict[str, Any]
_NEW = (
    *(walls.NEW_USERS, walls.NEW_PROCESSES, walls.NEW_NETWORK),
    *(walls.NEW_IPC, walls.NEW_HOST_NAME, walls.NEW_CGROUPS),
)


def main(door_number: int) -> None:
    """Serve requests until the library closes its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards need no waiting for
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    walls.load_early()
    sys.path[:] = [path for path in sys.path if path and path != sys.argv[2]]
    with socket.socket(fileno=door_number) as door:
        while True:
            message, files, _, _ = socket.recv_fds(door, 16, 8)
            if not message:
                return
            if os.fork() == 0:
                door.close()
                _guard(files)
            for file in files:
                os.close(file)


def _guard(files: list[int]) -> NoReturn:
    """Run one job; the files are the code's three streams, report, control, and talk.

    Never returns, whatever happens.
    """
    report, control, talk = files[3], files[4], files[5:]
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for target in range(3):
            os.dup2(files[target], target)
            os.close(files[target])
        with os.fdopen(control, "rb", closefd=False) as orders:
            job = json.loads(orders.readline())
            _prepare(job, report, orders)
        _say(report, {"status": _watched(job, report, control, talk)})
    except BaseException as error:
        _say(report, {"failed": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(0)


def _say(report: int, words: dict[str, Any]) -> None:
    try:
        os.write(report, json.dumps(words).encode() + b"\n")
    except OSError:
        pass  # the library is gone, and with it whoever would want to know


def _prepare(job: Job, report: int, orders: Any) -> None:
    """Do what comes before there is a process for the code."""
    if job["user"] is not None:
        os.setgroups([])
    if "namespaces" in job["level"]:
        flags = 0
        for flag in _NEW:
            flags |= flag
        walls.unshare(flags)
        # Only a process outside may say which user this one is outside.
        _say(report, {"guard": os.getpid()})
        if orders.readline() != b"go\n":
            os._exit(0)
        socket.sethostname("sandbox")
    else:
        _say(report, {"guard": os.getpid()})
        walls.adopt_orphans()


def _watched(job: Job, report: int, control: int, talk: list[int]) -> int | None:
    """Start the code, wait for its end or the order to kill; return its wait status."""
    trouble, status = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for file in (report, control, trouble[0], status[0]):
            os.close(file)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out, this goes and not the training
        if "namespaces" in job["level"]:
            _first(job, talk, trouble[1], status[1])
        os.close(status[1])
        _code(job, talk, trouble[1])
    for file in (0, 1, 2, trouble[1], status[1], *talk):
        os.close(file)
    with os.fdopen(trouble[0], "rb") as said:
        words = said.read().decode(errors="replace")
    if words:
        raise OSError(words)
    _say(report, {"started": child})
    handle = os.pidfd_open(child)
    ready, _, _ = select.select([handle, control], [], [])
    killed = handle not in ready
    if killed:
        os.kill(child, signal.SIGKILL)
    ended = os.waitpid(child, 0)[1]
    if "namespaces" in job["level"]:
        told = os.read(status[0], 64)
        return int(told) if told and not killed else None
    _sweep(job)
    return None if killed else ended


def _sweep(job: Job) -> None:
    """Kill all that is left, where no process namespace does it."""
    if job["user"] is not None:
        killer = os.fork()
        if killer == 0:
            _become(job["user"])
            try:
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        for pid in _children(os.getpid()):
            _kill_tree(pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _children(pid: int) -> list[int]:
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        pass  # it ended meanwhile
    return found


def _kill_tree(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGSTOP)  # so that it makes no more of them meanwhile
        for child in _children(pid):
            _kill_tree(child)
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def _become(user: int) -> None:
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _first(job: Job, talk: list[int], trouble: int, status: int) -> NoReturn:
    """Be the first process of the namespaces: make the root, wait for the code."""
    try:
        walls.own_mounts()
        copies = walls.read_only_copies(job["readable"])
        _become(job["inside"])
        walls.die_with_parent()
        walls.new_root(copies, job["links"], job["hidden"], job["folder_bytes"])
        _write_files(job["files"])
        child = os.fork()
        if child == 0:
            os.close(status)
            _code(job, talk, trouble)
        for file in (0, 1, 2, trouble, *talk):
            os.close(file)
        while True:
            pid, ended = os.wait()
            if pid == child:
                os.write(status, str(ended).encode())
                os._exit(0)
    except BaseException as error:
        os.write(trouble, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def _write_files(files: dict[str, str]) -> None:
    # What can't be encoded is written so that reading it fails, as it should: inside,
    # and as the code's own doing.
    for name, text in files.items():
        if os.path.dirname(name):
            os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "w", -1, "utf-8", "surrogatepass", newline="") as file:
            file.write(text)


def _code(job: Job, talk: list[int], trouble: int) -> NoReturn:
    """Be the code's process: give up all rights, then run what the job says."""
    try:
        _give_up_rights(job)
        command = job["command"]
        os.set_inheritable(trouble, False)
        if command is not None:
            os.execve(command[0], command, job["environment"])
        os.close(trouble)
        trouble = -1
        os.environ.clear()
        os.environ.update(job["environment"])
        sys.path[:] = [os.getcwd(), *sys.path]
        serve = asking.serve if job["asks"] else answers.serve
        serve(talk[0], talk[1], job["source"], job["main"])
    except BaseException as error:
        if trouble >= 0:
            os.write(trouble, f"{type(error).__name__}: {error}".encode())
        else:
            traceback.print_exc()
    finally:
        os._exit(1)


def _give_up_rights(job: Job) -> None:
    level = job["level"]
    if "namespaces" not in level:
        os.chdir(job["folder"])
        if job["user"] is not None:
            _become(job["user"])
        walls.die_with_parent()
        _write_files(job["files"])
    for name, value in job["limits"].items():
        if name == "RLIMIT_NPROC" and level in ("landlock+seccomp", "limits"):
            value += _tasks_of(os.getuid())
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        # At the first the process is told, so that its end has a cause to report.
        resource.setrlimit(number, (value, value + (name == "RLIMIT_CPU")))
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        if job["command"] is not None:
            signal.signal(number, signal.SIG_DFL)
    walls.drop_capabilities()
    walls.no_new_privileges()
    if "landlock" in level:
        devices = [path for path in job["readable"] if path.startswith("/dev/")]
        walls.landlock(job["readable"], [job["folder"], *devices], {*job["hidden"]})
    if "seccomp" in level:
        walls.filter_system_calls(file_marks="landlock" not in level)


def _tasks_of(user: int) -> int:
    """Return how many processes and threads a user has, the asking process aside."""
    found = -1
    for name in os.listdir("/proc"):
        try:
            if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == user:
                found += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue  # it ended meanwhile
    return max(found, 0)
