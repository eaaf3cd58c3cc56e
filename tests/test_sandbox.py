"""Attacks on the sandbox, each beside a control: the same without the wall works."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from emoreg.behavior.sandbox import sandbox as sandbox_module
from emoreg.behavior.sandbox.limits import LEVELS, WEAK, Level, Limits, SandboxError
from emoreg.behavior.sandbox.machine import interpreter, view
from emoreg.behavior.sandbox.sandbox import Sandbox, why_not, working_levels

ROOT = Path(__file__).resolve().parent.parent
AS_ROOT = os.geteuid() == 0
SMALL = Limits(seconds=20.0, memory=256 * 2**20, processes=8, file_bytes=2**20)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone")


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Return a sandbox of each level that works here."""
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    with Sandbox(level=request.param, allow_weak=True, limits=SMALL) as made:
        yield made


@pytest.fixture
def hasty(sandbox: Sandbox) -> Iterator[Sandbox]:
    """Return the same with little time."""
    limits = Limits(seconds=1.0, processes=8)
    with Sandbox(level=sandbox.level, allow_weak=True, limits=limits) as made:
        yield made


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder outside in which every user may write."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def said(sandbox: Sandbox, code: str, *arguments: str) -> str:
    """Return what code prints in the sandbox."""
    done = sandbox.run({"main.py": code}, ["python", "main.py", *arguments])
    assert done.status == "ok", done
    return done.stdout.strip()


def said_outside(code: str, *arguments: str) -> str:
    """Return what it prints with no sandbox around it: the control."""
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()


def with_word(word: str) -> list[int]:
    """Return the processes whose command line holds a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


# -- a run -----------------------------------------------------------------------------


def test_a_run_gives_what_the_code_did(sandbox: Sandbox) -> None:
    code = "import sys, helper\nprint(helper.NAME + input())\nsys.exit('no')"
    files = {"main.py": code, "helper.py": "NAME = 'kiln '"}
    done = sandbox.run(files, ["python", "main.py"], stdin="ö\n")
    assert (done.status, done.returncode, done.level) == ("error", 1, sandbox.level)
    assert (done.stdout, done.stderr) == ("kiln ö\n", "no\n")
    assert 0.0 < done.seconds < SMALL.seconds


def test_the_folder_holds_the_files_alone_and_no_file_is_open(sandbox: Sandbox) -> None:
    code = """
import os
def opened(number):
    try:
        return bool(os.fstat(number))
    except OSError:
        return False
print(sorted(os.listdir()), [n for n in range(64) if opened(n)], sorted(os.environ))
"""
    told = said(sandbox, code)
    names = ["HOME", "LANG", "PATH", "PYTHONHASHSEED", "TMPDIR"]
    assert told == f"{['main.py']} {[0, 1, 2]} {names}"
    assert said(sandbox, "import os; open('left', 'w'); print(os.listdir())")
    assert said(sandbox, code) == told


def test_a_signal_is_told_apart_from_an_exit_code(sandbox: Sandbox) -> None:
    done = sandbox.run({}, ["python", "-c", "import os; os.kill(os.getpid(), 15)"])
    assert (done.status, done.returncode) == ("error", -signal.SIGTERM)


def test_runs_overlap_and_leave_no_file_open(sandbox: Sandbox) -> None:
    said(sandbox, "print()")
    before = len(os.listdir("/proc/self/fd"))
    code = "import sys, time; time.sleep(0.3); print(sys.argv[1])"
    with ThreadPoolExecutor(6) as pool:
        told = pool.map(lambda number: said(sandbox, code, str(number)), range(6))
    assert list(told) == list("012345")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("name", ["../main.py", "/etc/main.py", "", "a/../../b"])
def test_files_stay_in_the_folder(name: str) -> None:
    with Sandbox(level=working_levels()[-1], allow_weak=True) as sandbox:
        with pytest.raises(ValueError, match="relative paths inside"):
            sandbox.run({name: ""}, ["python", "main.py"])
        with pytest.raises(ValueError, match="needs a command"):
            sandbox.run({}, [])


@pytest.mark.parametrize("name", ["seconds", "memory", "processes", "output"])
def test_limits_must_be_above_zero(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be above 0, found 0"):
        Limits(**{name: 0.0 if name == "seconds" else 0})  # type: ignore[arg-type]


# -- taking too much -------------------------------------------------------------------


def test_time(hasty: Sandbox) -> None:
    begun = time.monotonic()
    code = "import signal\nfor n in (2, 15, 24): signal.signal(n, signal.SIG_IGN)\n"
    done = hasty.run({"main.py": code + "while True: pass"}, ["python", "main.py"])
    assert (done.status, done.returncode) == ("timeout", None)
    assert 1.0 <= time.monotonic() - begun < 8.0


FORKS = """
import os, sys, time
made = 0
try:
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
except OSError:
    pass
print(made)
"""


def test_processes(sandbox: Sandbox) -> None:
    assert said(sandbox, FORKS, "5") == "5"
    assert int(said(sandbox, FORKS, "50")) < SMALL.processes


def test_a_fork_bomb_ends_and_leaves_nothing(hasty: Sandbox) -> None:
    word = f"walrus-{uuid.uuid4()}"
    code = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
    done = hasty.run({"main.py": code}, ["python", "main.py", word])
    assert done.status == "timeout"
    assert with_word(word) == []


def test_memory_of_one_process(sandbox: Sandbox) -> None:
    assert said(sandbox, "print(len(bytearray(50 * 2**20)))") == str(50 * 2**20)
    done = sandbox.run({}, ["python", "-c", "bytearray(10**9)"])
    assert done.status == "memory"
    assert "MemoryError" in done.stderr  # refused, not killed for what it took


def test_memory_of_all_together(sandbox: Sandbox) -> None:
    code = """
import os, sys, time
for _ in range(5):
    if os.fork() == 0:
        held = bytearray(b"x") * (int(sys.argv[1]) * 2**20)
        time.sleep(float(sys.argv[2]))
        os._exit(0)
for _ in range(5):
    os.wait()
print("done")
"""
    assert said(sandbox, code, "10", "0.2") == "done"
    done = sandbox.run({"main.py": code}, ["python", "main.py", "100", "15"])
    assert (done.status, done.stdout) == ("memory", "")


def test_memory_that_is_shared(sandbox: Sandbox) -> None:
    code = """
import mmap, os, sys, time
try:
    for _ in range(5):
        held = mmap.mmap(-1, int(sys.argv[1]) * 2**20)  # shared, of no file
        if os.fork() == 0:
            for _ in range(int(sys.argv[1])):
                held.write(bytes(2**20))
            time.sleep(float(sys.argv[2]))
            os._exit(0)
    for _ in range(5):
        os.wait()
    print("done")
except PermissionError:
    print("refused")
"""
    done = sandbox.run({"main.py": code}, ["python", "main.py", "80", "15"])
    if "seccomp" in sandbox.level:
        assert said(sandbox, code, "10", "0") == "refused"
        assert (done.status, done.stdout) == ("ok", "refused\n")
        zero = "import os; print(os.path.exists('/dev/null'), open('/dev/zero'))"
        assert sandbox.run({}, ["python", "-c", zero]).status == "error"
    else:
        assert said(sandbox, code, "10", "0") == "done"
        assert (done.status, done.stdout) == ("memory", "")


def test_output(sandbox: Sandbox) -> None:
    code = "import sys; sys.std{}.write('x' * 100_000)"
    out = sandbox.run({}, ["python", "-c", code.format("out")])
    err = sandbox.run({}, ["python", "-c", code.format("err")])
    assert (out.status, len(out.stdout), out.stdout_cut) == ("ok", 65536, 34464)
    assert (err.status, len(err.stderr), err.stderr_cut) == ("ok", 65536, 34464)
    endless = sandbox.run({}, ["python", "-c", "while True: print('x' * 999)"])
    assert (endless.status, len(endless.stdout)) == ("output", 65536)
    assert endless.stdout_cut > 15 * 65536


def test_sizes_of_files(sandbox: Sandbox) -> None:
    code = """
import sys
written = 0
try:
    for number in range(int(sys.argv[1])):
        with open(f"file{number}", "wb", buffering=0) as file:
            for _ in range(int(sys.argv[2])):
                written += file.write(bytes(2**18))
except OSError:
    pass
print(written)
"""
    assert said(sandbox, code, "1", "3") == str(3 * 2**18)
    assert said(sandbox, code, "1", "50") == str(2**20)
    total = int(said(sandbox, code, "100", "4"))
    assert (total <= 64 * 2**20) == ("namespaces" in sandbox.level)


# -- reaching outside ------------------------------------------------------------------

READ_ENVIRONMENTS = """
import glob
found = set()
for path in glob.glob("/proc/[0-9]*/environ"):
    try:
        with open(path, "rb") as file:
            found.add(b"vexed-walrus" in file.read())
    except OSError:
        continue
print(True in found)
"""


def test_environments_of_others(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMOREG_SECRET", "vexed-walrus")
    with subprocess.Popen(["sleep", "60"]) as holder:
        try:
            assert said_outside(READ_ENVIRONMENTS) == "True"
            told = said(sandbox, READ_ENVIRONMENTS)
        finally:
            holder.kill()
    # A plain user's processes can read one another's where only limits are set.
    assert told == str(sandbox.level in WEAK and not AS_ROOT)
    assert said(sandbox, "import os; print('EMOREG_SECRET' in os.environ)") == "False"
    # Code under test is forked from the keeper and has what it was started with.
    with Sandbox(level=sandbox.level, allow_weak=True) as fresh:
        said(fresh, "print()")
        assert fresh._keeper is not None
        keeper = Path(f"/proc/{fresh._keeper._process.pid}/environ").read_bytes()
    assert b"PYTHONHASHSEED" in keeper
    assert b"walrus" not in keeper


def test_network(sandbox: Sandbox) -> None:
    code = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5).close()
    print("reached")
except OSError as error:
    print(type(error).__name__)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        assert said_outside(code, port) == "reached"
        told = said(sandbox, code, port)
    assert (told == "reached") == (sandbox.level in WEAK)


def test_sockets_with_a_path(sandbox: Sandbox, open_folder: Path) -> None:
    code = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    print("reached")
except OSError as error:
    print(type(error).__name__)
"""
    path = str(open_folder / "door")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        os.chmod(path, 0o777)
        server.listen()
        assert said_outside(code, path) == "reached"
        assert (said(sandbox, code, path) == "reached") == (sandbox.level in WEAK)


def test_files_outside(sandbox: Sandbox, open_folder: Path) -> None:
    code = """
import os, sys
secret, target = sys.argv[1:]
for attempt in (
    lambda: open(secret).read(),
    lambda: open(target, "w").close(),
    lambda: os.chmod(secret, 0o600),
):
    try:
        print(attempt() or "done", end=" ")
    except OSError:
        print("-", end=" ")
"""
    secret, target = open_folder / "secret", open_folder / "target"
    secret.write_text("walrus")
    secret.chmod(0o644)
    assert said_outside(code, str(secret), str(target)) == "walrus done done"
    assert target.exists()
    target.unlink()
    secret.chmod(0o644)
    told = said(sandbox, code, str(secret), str(target))
    assert target.exists() == (sandbox.level in WEAK)
    if sandbox.level in WEAK:
        assert told == ("walrus done -" if AS_ROOT else "walrus done done")
    else:
        assert told == "- - -"


def test_the_root_can_not_be_changed(sandbox: Sandbox) -> None:
    code = """
import os
for folder in ("/", "/usr/lib", "/etc"):
    try:
        print(open(os.path.join(folder, "emoreg-left"), "w") and "opened", end=" ")
    except OSError:
        print("-", end=" ")
"""
    assert said(sandbox, code) == "- - -"


def test_the_interpreter_can_not_be_changed(sandbox: Sandbox) -> None:
    code = """
import os
try:
    print(open(os.__file__, "a") and "opened")
except OSError as error:
    print(type(error).__name__)
"""
    assert said(sandbox, code) in ("OSError", "PermissionError")
    # Not for lack of rights alone: the interpreter may be this user's own.
    fixed = "import os; print(bool(os.statvfs(os.__file__).f_flag & os.ST_RDONLY))"
    if "namespaces" in sandbox.level:
        assert said(sandbox, fixed) == "True"


def test_installed_packages_can_not_be_read(sandbox: Sandbox) -> None:
    code = """
import sys
try:
    print(len(open(sys.argv[1], "rb").read()))
except OSError as error:
    print("-")
"""
    hidden = view(interpreter(sandbox.level)).hidden
    files = [file for place in hidden for file in Path(place).glob("*/__init__.py")]
    files = [file for file in files if file.stat().st_size and os.access(file, os.R_OK)]
    if not files:
        pytest.skip("the interpreter has no packages beside it")
    size = str(files[0].stat().st_size)
    assert said_outside(code, str(files[0])) == size
    assert said(sandbox, code, str(files[0])) == (
        size if sandbox.level in WEAK else "-"
    )
    assert said(sandbox, "import zoneinfo, sqlite3, decimal; print('there')") == "there"


def test_signals_to_others(sandbox: Sandbox) -> None:
    code = "import os, sys\nfor pid in map(int, sys.argv[1:]):\n os.kill(pid, 9)"
    with subprocess.Popen(["sleep", "60"]) as free:
        said_outside(code, str(free.pid))
        assert free.wait(10) == -signal.SIGKILL
    with subprocess.Popen(["sleep", "60"]) as held:
        sandbox.run({"main.py": code}, ["python", "main.py", str(held.pid)])
        try:
            time.sleep(0.1)
            alive = held.poll() is None
        finally:
            held.kill()
    assert alive == (sandbox.level not in WEAK or AS_ROOT)


# What a filter refuses and plain users else may.
CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
attempts = {
    "memory file": lambda: libc.memfd_create(b"x", 0),
    "shared memory": lambda: libc.shmctl(libc.shmget(0, 4096, 0o1600), 0, None),
    "user namespace": lambda: libc.unshare(0x10000000),
    "socket": lambda: libc.socket(1, 1, 0),
    "priority": lambda: libc.setpriority(0, 0, 5),
}
print([name for name, attempt in attempts.items() if attempt() >= 0])
"""


def test_system_calls(sandbox: Sandbox) -> None:
    refused = said(sandbox, CALLS) == "[]"
    assert refused == ("seccomp" in sandbox.level)
    assert "socket" in said_outside(CALLS)


# By what others made: a segment, a queue and semaphores that everyone may use.
USE_OF_OTHERS = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
segment, queue, semaphores = map(int, sys.argv[1:])
words = ctypes.create_string_buffer(b"\\1" + bytes(15))
attempts = {
    "attach": lambda: libc.shmat(segment, None, 0),
    "ask": lambda: libc.shmctl(segment, 2, ctypes.create_string_buffer(512)),
    "send": lambda: libc.msgsnd(queue, words, 8, 0o4000),
    "receive": lambda: libc.msgrcv(queue, words, 8, 0, 0o4000),
    "raise": lambda: libc.semop(semaphores, bytes([0, 0, 1, 0, 0, 0]), 1),
    "set": lambda: libc.semctl(semaphores, 0, 16, 0),
}
print([name for name, attempt in attempts.items() if attempt() != -1])
"""


def test_shared_memory_and_queues_of_others(sandbox: Sandbox) -> None:
    libc = ctypes.CDLL(None)
    segment = libc.shmget(0, 4096, 0o1666)
    queue = libc.msgget(0, 0o1666)
    semaphores = libc.semget(0, 1, 0o1666)
    ids = [str(number) for number in (segment, queue, semaphores)]
    try:
        all_of_it = "['attach', 'ask', 'send', 'receive', 'raise', 'set']"
        assert said_outside(USE_OF_OTHERS, *ids) == all_of_it
        told = said(sandbox, USE_OF_OTHERS, *ids)
    finally:
        libc.shmctl(segment, 0, None)
        libc.msgctl(queue, 0, None)
        libc.semctl(semaphores, 0, 0)
    # By the filter, and in namespaces since others' are not there.
    assert told == (all_of_it if sandbox.level in WEAK else "[]")


# What they answer to nonsense, as none is to be done.
NEW_CALLS = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
def answer(number):
    libc.syscall(number, -1, 0, 0, 0, 0, 0)
    return errno.errorcode[ctypes.get_errno()]
print(*sorted({answer(number) for number in range(*map(int, sys.argv[1:]))}))
"""


def test_calls_newer_than_the_filter(sandbox: Sandbox) -> None:
    assert said_outside(NEW_CALLS, "434", "435") != "ENOSYS"
    if "seccomp" in sandbox.level:
        assert said(sandbox, NEW_CALLS, "425", "600") == "ENOSYS"


def test_a_command_to_a_terminal_is_known_by_its_32_bits(sandbox: Sandbox) -> None:
    code = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for command in (0x5412, 0x100005412, 0x5413):
    libc.ioctl(0, ctypes.c_ulong(command), None)
    print(errno.errorcode[ctypes.get_errno()], end=" ")
"""
    refused = "EPERM EPERM" if "seccomp" in sandbox.level else "ENOTTY ENOTTY"
    assert said(sandbox, code) == f"{refused} ENOTTY"


def test_a_call_that_the_library_does_not_know_is_no_filter() -> None:
    program = """
from emoreg.behavior.sandbox import walls
walls._REFUSED = ("walrus",)
walls.no_new_privileges()
walls.filter_system_calls(file_marks=True)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    if "libseccomp.so.2" in done.stderr:
        pytest.skip("libseccomp is not there")
    assert "seccomp rule for walrus: libseccomp must know" in done.stderr


# -- outliving the run -----------------------------------------------------------------

LEAVE = """
import os, subprocess, sys
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)", sys.argv[1]]
if os.fork() == 0:
    os.setsid()
    null = subprocess.DEVNULL
    subprocess.Popen(sleeper, start_new_session=True, stdout=null, stderr=null)
    os._exit(0)
os.wait()
if len(sys.argv) > 2:
    while True:
        pass
"""


def test_nothing_outlives_a_run(sandbox: Sandbox, hasty: Sandbox) -> None:
    word = f"walrus-{uuid.uuid4()}"
    said_outside(LEAVE, word)
    left = with_word(word)
    assert len(left) == 1
    os.kill(left[0], signal.SIGKILL)

    word = f"walrus-{uuid.uuid4()}"
    said(sandbox, LEAVE, word)
    assert with_word(word) == []
    stays = hasty.run({"main.py": LEAVE}, ["python", "main.py", word, "stay"])
    assert stays.status == "timeout"
    assert with_word(word) == []


def test_nothing_outlives_the_library(sandbox: Sandbox, open_folder: Path) -> None:
    word = f"walrus-{uuid.uuid4()}"
    program = f"""
from emoreg.behavior.sandbox.sandbox import Sandbox
sandbox = Sandbox(level={sandbox.level!r}, allow_weak=True)
code = {LEAVE!r}
sandbox.run({{"main.py": code}}, ["python", "main.py", {word!r}, "stay"])
"""
    command = [sys.executable, "-c", program]
    # What stays is the working folder, where it is none in memory.
    environment = {**os.environ, "TMPDIR": str(open_folder)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as library:
        until, found = time.monotonic() + 20.0, 0
        while found < 3 and time.monotonic() < until:
            time.sleep(0.05)
            found = len(with_word(word))  # the library, the code, and what it leaves
        library.kill()
    assert found >= 3
    until = time.monotonic() + 5.0
    while with_word(word) and time.monotonic() < until:
        time.sleep(0.05)
    assert with_word(word) == []


def test_code_ends_with_its_guard(sandbox: Sandbox) -> None:
    word = f"walrus-{uuid.uuid4()}"
    code = "import os, time\nif {}: os.fork()\ntime.sleep(60)"
    # Children of the code go with it where the kernel sees to that.
    code = code.format("namespaces" in sandbox.level)
    command = [interpreter(sandbox.level), "main.py", word]
    with sandbox.start({"main.py": code}, command=command) as process:
        time.sleep(0.2)
        assert with_word(word)
        os.kill(process._guard, signal.SIGKILL)
        done = process.finish()
    assert (done.status, done.returncode) == ("error", None)
    until = time.monotonic() + 5.0
    while with_word(word) and time.monotonic() < until:
        time.sleep(0.05)
    assert with_word(word) == []


def test_a_keeper_that_is_gone_is_replaced(sandbox: Sandbox) -> None:
    said(sandbox, "print()")
    keeper = sandbox._keeper
    assert keeper is not None
    keeper._process.kill()
    keeper._process.wait()
    assert said(sandbox, "print('again')") == "again"


# -- the level -------------------------------------------------------------------------


def without(*levels: Level):
    return lambda level: "taken away" if level in levels else why_not(level)


def test_the_strongest_that_works_is_taken_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = working_levels()
    caplog.set_level("INFO", logger="emoreg")
    with Sandbox(allow_weak=True) as first:
        assert first.level == working[0]
    assert f"level {working[0]}" in caplog.text
    monkeypatch.setattr(sandbox_module, "why_not", without(working[0]))
    if len(working) > 1:
        with Sandbox(allow_weak=True) as second:
            assert second.level == working[1]


def test_a_weak_level_must_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    strong: list[Level] = [level for level in LEVELS if level not in WEAK]
    monkeypatch.setattr(sandbox_module, "why_not", without(*strong))
    with pytest.raises(SandboxError, match=r"namespaces: taken away.*allow_weak=True"):
        Sandbox()
    with pytest.raises(SandboxError, match="leaves files and network open"):
        Sandbox(level="limits")
    with Sandbox(allow_weak=True) as weak:
        assert weak.level == "limits"
    with pytest.raises(SandboxError, match="taken away"):
        Sandbox(level="namespaces", allow_weak=True)


def test_what_the_machine_offers_is_used() -> None:
    """Else all of the above could be skipped without anyone noticing."""
    kernel = tuple(int(part) for part in os.uname().release.split(".")[:2])
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid"]
    namespaces = (
        kernel >= (5, 14)
        and shutil.which("unshare")
        and not (
            subprocess.run([*unshare, "--fork", "true"], capture_output=True).returncode
        )
    )
    try:
        ctypes.CDLL("libseccomp.so.2")
        filters = True
    except OSError:
        filters = False
    landlock = ctypes.CDLL(None).syscall(444, None, 0, 1) >= 6
    offered: dict[Level, bool] = {
        "namespaces+seccomp": bool(namespaces) and filters,
        "namespaces": bool(namespaces),
        "landlock+seccomp": landlock and filters,
        "limits": True,
    }
    for level, there in offered.items():
        reason = why_not(level) or ""
        closed = "As root, code runs as another user" in reason
        assert not there or not reason or closed, f"{level}: {reason}"


def test_the_trial_sees_walls_that_are_not_there() -> None:
    if why_not("limits") is not None:
        pytest.skip(f"limits: {why_not('limits')}")
    with Sandbox._untried("limits") as weak:
        told = said(weak, sandbox_module._TRIAL, "namespaces")
    assert "it sees other processes" in told
    assert "it reaches the network" in told
    generous = Limits(processes=30)
    with Sandbox(level="limits", allow_weak=True, limits=generous) as weak:
        assert "any number of processes" in said(weak, sandbox_module._TRIAL, "limits")


def test_elsewhere_there_is_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux, found darwin"):
        interpreter("limits")


@pytest.mark.skipif(not AS_ROOT, reason="only root can become someone else")
def test_a_plain_user_has_the_same_levels() -> None:
    program = """
import sys
sys.path.append(sys.argv[1])
from emoreg.behavior.sandbox.runner import run_tests
from emoreg.behavior.sandbox.sandbox import Sandbox, working_levels
for level in working_levels():
    with Sandbox(level=level, allow_weak=True) as sandbox:
        report = run_tests("def f(): return 1", ["f() == 1"], sandbox=sandbox)
        print(level, report.all_passed)
"""
    system = Path("/usr/bin/python3")
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    if not system.exists() or subprocess.run([system, "-c", check]).returncode:
        pytest.skip("no Python of the system that is 3.11 or later")
    if not all(place.stat().st_mode & 0o001 for place in ROOT.parents):
        pytest.skip("the checkout is closed to other users")
    done = subprocess.run(
        [system, "-B", "-c", program, str(ROOT)],
        user=12345,
        group=12345,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
    )
    expected = "".join(f"{level} True\n" for level in working_levels())
    assert done.stdout == expected, done.stderr
