"""The client of Ceph of `ctdbd --lock-helper rados`; rados.rs starts it and judges what it says.

arguments: CLUSTER USER POOL NAMESPACE OBJECT DURATION COOKIE DESCRIPTION PATIENCE

Asked on standard input, a line each: `ID connect`, `ID take` or `ID renew`. Answered on standard
output, a line each: `ID ok|busy|gone|late|failed [TEXT]`. Frees the lock and ends when its standard
input does.
"""
import errno
import os
import signal
import sys

# The first would be the working directory.
sys.path[:] = [path for path in sys.path if path]

# As CTDB's own helper names it (Debian's 4.17, asked with `rados lock list`): the two exclude each
# other.
LOCK = "ctdb_reclock_mutex"
# LIBRADOS_LOCK_FLAG_MUST_RENEW: fails if the lock is not this client's and cookie's any more.
MUST_RENEW = 2
CONNECT = 5

WORDS = {
    errno.EBUSY: "busy",
    errno.EEXIST: "busy",
    errno.ENOENT: "gone",
    # Blocklisted: an operator, or Ceph itself, has fenced this client off.
    errno.ESHUTDOWN: "gone",
    errno.ETIMEDOUT: "late",
}


def answer(question, word, text=""):
    text = " ".join(str(text).split())[:200]
    try:
        sys.stdout.write(f"{question} {word} {text}\n")
        sys.stdout.flush()
    except OSError:
        # Nobody listens; standard input has ended, too.
        pass


def tried(action, limit):
    """What came of it. Whatever the library does, the kernel ends this process after `limit`."""
    signal.alarm(limit)
    try:
        action()
        return "ok", ""
    except Exception as error:
        return WORDS.get(getattr(error, "errno", None), "failed"), error
    finally:
        signal.alarm(0)


class Lock:
    def __init__(self, arguments):
        (self.cluster, self.user, self.pool, self.namespace, self.object, duration, self.cookie,
         self.description, patience) = arguments
        # None: it does not expire.
        self.duration = int(duration) or None
        self.patience = int(patience)
        self.io = None

    def connect(self):
        try:
            import rados
        except ImportError as error:
            raise RuntimeError(f"{error}: install python3-rados") from error
        cluster = rados.Rados(
            name=self.user, clustername=self.cluster, conffile=rados.Rados.DEFAULT_CONF_FILES)
        for name, seconds in (
                ("client_mount_timeout", CONNECT),
                ("rados_mon_op_timeout", CONNECT),
                ("rados_osd_op_timeout", self.patience)):
            cluster.conf_set(name, str(seconds))
        cluster.connect()
        self.io = cluster.open_ioctx(self.pool)
        self.io.set_namespace(self.namespace)

    def lock(self, flags):
        self.io.lock_exclusive(
            self.object, LOCK, self.cookie, self.description, self.duration, flags)

    def take(self):
        self.lock(0)

    def renew(self):
        self.lock(MUST_RENEW)

    def free(self):
        self.io.unlock(self.object, LOCK, self.cookie)


def main():
    # The daemon ends the whole group by SIGTERM; the lock is freed first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = Lock(sys.argv[1:])
    actions = {"connect": lock.connect, "take": lock.take, "renew": lock.renew}
    limit = lock.patience + 2 * CONNECT
    taken = False
    while line := sys.stdin.readline():
        question, word = line.split()
        said, text = tried(actions[word], limit)
        # One that failed or was late may be there, too.
        taken = taken or (word == "take" and said != "busy")
        answer(question, said, text)
    if taken:
        tried(lock.free, limit)


main()
# Threads of the library are not waited for.
os._exit(0)
