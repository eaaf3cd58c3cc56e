"""What the kernel is asked for to shut a process in: Linux alone.

Runs in the keeper's processes, which are small and have one thread. The system calls
are made by `ctypes`, so nothing has to be installed; system call filters are built by
libseccomp where it is there. Each function raises `OSError` where the kernel refuses.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from typing import Any

NEW_MOUNTS, NEW_USERS, NEW_PROCESSES = 0x00020000, 0x10000000, 0x20000000
NEW_NETWORK, NEW_IPC, NEW_HOST_NAME, NEW_CGROUPS = (
    *(0x40000000, 0x08000000, 0x04000000, 0x02000000),
)

_READ_ONLY, _RECURSIVE, _PRIVATE, _NO_SUID, _NO_DEVICES, _DETACH = (
    1,
    0x4000,
    1 << 18,
    2,
    4,
    2,
)
_SET_DEATH_SIGNAL, _NO_NEW_PRIVILEGES, _SUBREAPER = 1, 38, 36
# The same numbers on every architecture: calls newer than 2018.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_HERE, _EMPTY_PATH, _WHOLE_TREE, _CLONE_TREE = -100, 0x1000, 0x8000, 1
_ATTR_READ_ONLY, _ATTR_NO_SUID, _ATTR_NO_DEVICES = 1, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _control(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    done = _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero)
    _checked(done, f"prctl {option}")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _control(_SET_DEATH_SIGNAL, 9)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _control(_SUBREAPER, 1)


def no_new_privileges() -> None:
    """Rule out that a program run from here gains rights, as by set-user-id."""
    _control(_NO_NEW_PRIVILEGES, 1)


def drop_capabilities() -> None:
    """Give up all rights beyond those of a plain user."""
    header, data = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _checked(_libc.capset(header, data), "capset")


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` names for new ones."""
    _checked(_libc.unshare(flags), "unshare")


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    encoded = [os.fsencode(text) for text in (source, target, kind)]
    _checked(
        _libc.mount(*encoded, ctypes.c_ulong(flags), data.encode()), f"mount {target}"
    )


def _restrict_mount(tree: int, path: str, flags: int, set_: int) -> None:
    attributes = struct.pack("=QQQQ", set_, 0, 0, 0)
    done = _libc.syscall(
        _MOUNT_SETATTR, tree, path.encode(), flags, attributes, len(attributes)
    )
    _checked(done, "mount_setattr")


def own_mounts() -> None:
    """Have mounts of its own, of which nothing spreads outside."""
    unshare(NEW_MOUNTS)
    _mount("none", "/", "none", _RECURSIVE | _PRIVATE, "")


def read_only_copies(paths: Iterable[str]) -> dict[str, int]:
    """Return a read-only copy of the mount at each path, as an open file."""
    copies = {}
    for path in paths:
        flags = _CLONE_TREE | _WHOLE_TREE | os.O_CLOEXEC
        tree = _libc.syscall(_OPEN_TREE, _HERE, os.fsencode(path), flags)
        copies[path] = _checked(tree, f"open_tree {path}")
        set_ = _ATTR_READ_ONLY | _ATTR_NO_SUID
        if not path.startswith("/dev/"):
            set_ |= _ATTR_NO_DEVICES
        _restrict_mount(tree, "", _EMPTY_PATH | _WHOLE_TREE, set_)
    return copies


def new_root(
    copies: dict[str, int], links: dict[str, str], hidden: Iterable[str], size: int
) -> None:
    """Make a root of its own in memory: the copies, and a folder `/work` to write in.

    Args:
        copies: What `read_only_copies` returned.
        links: Symbolic links, as of `/bin` to `usr/bin`.
        hidden: Folders in the copies that are to look empty.
        size: Bytes that `/work` may hold.
    """
    flags = _NO_SUID | _NO_DEVICES
    _mount("tmpfs", "/tmp", "tmpfs", flags, "size=1m,mode=755")
    os.chdir("/tmp")
    for path, tree in copies.items():
        inside = path.lstrip("/")
        os.makedirs(os.path.dirname(inside) or ".", exist_ok=True)
        # By the open file: its path may be closed to the user that this is by now.
        if stat.S_ISDIR(os.fstat(tree).st_mode):
            os.makedirs(inside, exist_ok=True)
        else:
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
        done = _libc.syscall(_MOVE_MOUNT, tree, b"", _HERE, os.fsencode(inside), 4)
        _checked(done, f"move_mount {path}")
        os.close(tree)
    for path in hidden:
        _mount("tmpfs", path.lstrip("/"), "tmpfs", flags | _READ_ONLY, "size=4k")
    for path, target in {**links, "/tmp": "work", "/dev/shm": "../work"}.items():
        os.makedirs(os.path.dirname(path.lstrip("/")) or ".", exist_ok=True)
        os.symlink(target, path.lstrip("/"))
    os.mkdir("work")
    _mount("tmpfs", "work", "tmpfs", flags, f"size={size},nr_inodes=4096,mode=700")
    _restrict_mount(_HERE, ".", 0, _ATTR_READ_ONLY | _ATTR_NO_SUID | _ATTR_NO_DEVICES)
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _DETACH), "umount2")
    os.chdir("/work")


# -- Landlock --------------------------------------------------------------------------

_RUN_OR_READ, _LIST, _FILE_ONLY, _EVERYTHING = (
    0b1101,
    0b1000,
    0b1100000000000111,
    0xFFFF,
)
_NO_TCP, _NO_ABSTRACT_SOCKETS_NOR_SIGNALS = 0b11, 0b11


def landlock_version() -> int:
    """Return the kernel's Landlock version, 0 if it has none.

    Version 6 (Linux 6.12) is the first that also keeps signals in.
    """
    return max(0, _libc.syscall(_LANDLOCK_CREATE, None, 0, 1))


def _around(path: str, hidden: set[str]) -> Iterator[tuple[str, int]]:
    """Yield what to allow so that all below a path but `hidden` can be read.

    Landlock allows and never takes back, so the way to a hidden folder is gone by
    entry. Names of what is hidden can be listed.
    """
    if path in hidden:
        return
    if not any(place.startswith(f"{path}/") for place in hidden):
        yield path, _RUN_OR_READ
        return
    yield path, _LIST
    for name in os.listdir(path):
        inside = os.path.join(path, name)
        if not os.path.islink(inside):  # what it leads to may be anywhere
            yield from _around(inside, hidden)


def landlock(
    readable: Iterable[str], writable: Iterable[str], hidden: set[str]
) -> None:
    """Shut every file away but those below `readable` and `writable`.

    Args:
        readable: Folders and files.
        writable: Folders and files.
        hidden: Folders below readable ones that are shut away nevertheless.
    """
    if landlock_version() < 6:
        raise OSError(errno.ENOSYS, "landlock: version 6 or later is not there")
    rules = struct.pack("=QQQ", _EVERYTHING, _NO_TCP, _NO_ABSTRACT_SOCKETS_NOR_SIGNALS)
    ruleset = _libc.syscall(_LANDLOCK_CREATE, rules, len(rules), 0)
    _checked(ruleset, "landlock_create_ruleset")
    allowed = [rule for path in readable for rule in _around(path, hidden)]
    allowed += [(path, _EVERYTHING) for path in writable]
    for path, access in allowed:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            access &= _FILE_ONLY
        rule = struct.pack("=Qi", access, file)
        _checked(_libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), "landlock_add_rule")
        os.close(file)
    done = _libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    _checked(done, "landlock_restrict_self")
    os.close(ruleset)


# -- system call filters ---------------------------------------------------------------

# From here on calls are numbered alike on every architecture, and refused, whether they
# are known here or not: all are from 2019 or later, and programs do without them on the
# kernels from before.
_FIRST_NEW = 425
# Not needed for computing, and where most holes of the kernel were found; or a way to
# take memory that no limit counts; or a way to the network or another process.
_REFUSED = (
    *("socket", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "mount"),
    *("umount2", "pivot_root", "chroot", "unshare", "setns", "bpf", "perf_event_open"),
    *("userfaultfd", "keyctl", "add_key", "request_key"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module"),
    *("delete_module", "reboot", "swapon", "swapoff", "acct", "quotactl", "syslog"),
    *("open_by_handle_at", "name_to_handle_at", "settimeofday", "clock_settime"),
    *("clock_adjtime", "adjtimex", "iopl", "ioperm", "modify_ldt", "fanotify_init"),
    *("memfd_create", "shmget", "shmat", "shmctl", "msgget", "msgsnd", "msgrcv"),
    *("msgctl", "semget", "semop", "semtimedop", "semctl", "mq_open", "mq_unlink"),
    *("setpriority", "sched_setscheduler", "sched_setparam", "sched_setattr"),
    *("ioprio_set", "migrate_pages", "move_pages"),
)
# Only for the own process, which is number 0.
_REFUSED_FOR_OTHERS = ("prlimit64", "sched_setaffinity")
# What Landlock leaves open: changing what a file is without opening it.
_REFUSED_ON_FILES = (
    *("chmod", "fchmod", "fchmodat", "chown", "lchown", "fchown", "fchownat"),
    *("utime", "utimes", "futimesat", "utimensat", "setxattr", "lsetxattr"),
    *("fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
)
_NAMESPACE_FLAGS = (
    *(NEW_MOUNTS, NEW_USERS, NEW_PROCESSES, NEW_NETWORK, NEW_IPC),
    *(NEW_HOST_NAME, NEW_CGROUPS),
)
# The kernel looks at 32 bits of it, a filter at 64.
_COMMAND, _TYPE_INTO_TERMINAL = 0xFFFFFFFF, 0x5412
_SHARED_ANONYMOUS = 0x21
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_UNEQUAL, _EQUAL_MASKED = 1, 7
_SET_FILTER, _BY_PROGRAM = 22, 2


class _Condition(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _seccomp() -> Any:
    return ctypes.CDLL("libseccomp.so.2")


def load_early() -> None:
    """Load what is used behind walls, where its file may be out of reach."""
    try:
        _seccomp()
    except OSError:
        pass  # then the levels that need it say so


def _refuse_new_calls() -> None:
    """Refuse calls by number, which libseccomp can't."""
    load, jump_if_at_least, answer = 0x20, 0x35, 0x06
    steps = struct.pack(
        "=" + 4 * "HBBI",
        *(load, 0, 0, 0),
        *(jump_if_at_least, 0, 1, _FIRST_NEW),
        *(answer, 0, 0, _ERROR | errno.ENOSYS),
        *(answer, 0, 0, _ALLOW),
    )
    kept = ctypes.create_string_buffer(steps)
    program = struct.pack("@HP", 4, ctypes.addressof(kept))
    done = _libc.prctl(_SET_FILTER, ctypes.c_ulong(_BY_PROGRAM), program)
    _checked(done, "prctl for a filter")


def filter_system_calls(*, file_marks: bool) -> None:
    """Refuse, from now on and for all descendants, calls that computing does without.

    Args:
        file_marks: Whether modes, owners and times of files may be changed.

    Raises:
        OSError: If libseccomp is not there or does not know a call that must be
            refused, or the kernel takes no filter.
    """
    _refuse_new_calls()
    library = _seccomp()
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))

    def refuse(call: str, code: int, *condition: int) -> None:
        number = library.seccomp_syscall_resolve_name(call.encode())
        if number == -1:
            raise OSError(
                errno.ENOSYS,
                f"seccomp rule for {call}: libseccomp must know this call to refuse "
                "it, and does not. Install a newer one",
            )
        of = _Condition(*condition)
        done = library.seccomp_rule_add_array(
            *(rules, ctypes.c_uint32(_ERROR | code), number),
            *(ctypes.c_uint(bool(condition)), ctypes.byref(of)),
        )
        if done < 0:
            raise OSError(-done, f"seccomp rule for {call}: {os.strerror(-done)}")

    for call in _REFUSED if file_marks else (*_REFUSED, *_REFUSED_ON_FILES):
        refuse(call, errno.EPERM)
    # `clone3`, whose flags lie where a filter can not look, is among the new ones.
    for flag in _NAMESPACE_FLAGS:
        refuse("clone", errno.EPERM, 0, _EQUAL_MASKED, flag, flag)
    for call in _REFUSED_FOR_OTHERS:
        refuse(call, errno.EPERM, 0, _UNEQUAL, 0, 0)
    refuse("ioctl", errno.EPERM, 1, _EQUAL_MASKED, _COMMAND, _TYPE_INTO_TERMINAL)
    # One page of such a mapping keeps all that was ever written to it, uncounted.
    refuse("mmap", errno.EPERM, 3, _EQUAL_MASKED, *(2 * [_SHARED_ANONYMOUS]))
    done = library.seccomp_load(rules)
    if done < 0:
        raise OSError(-done, f"seccomp_load: {os.strerror(-done)}")
    library.seccomp_release(rules)
