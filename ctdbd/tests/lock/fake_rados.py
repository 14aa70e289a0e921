"""Ceph in a directory, for tests: of python3-rados what the lock uses, and how it goes wrong.

FAKE_RADOS is the directory; its file `lock` is the lock on the one object. The file FAKE_MOOD says
how the next calls of this client go: `PART HOW`, PART being connect, take, renew or free.
"""
import errno
import fcntl
import json
import os
import time

DIR = os.environ["FAKE_RADOS"]
MOOD = os.environ["FAKE_MOOD"]


class Error(Exception):
    def __init__(self, message, number):
        super().__init__(f"[errno {number}] {message}")
        self.errno = number


def behave(part):
    """Goes wrong in this part, if told so."""
    try:
        with open(MOOD) as file:
            of, how = file.read().split()
    except FileNotFoundError:
        return
    if of != part:
        return
    if how == "hang":
        time.sleep(3600)
    elif how == "late":
        raise Error("time is up", errno.ETIMEDOUT)
    elif how == "fail":
        raise Error("broken", errno.EIO)
    elif how == "fail-once":
        os.unlink(MOOD)
        raise Error("broken, but once", errno.EIO)
    elif how == "fenced":
        raise Error("blocklisted", errno.ESHUTDOWN)
    elif how == "die":
        os._exit(1)
    elif how == "babble":
        os.write(1, b"what?\n")
    elif how == "endless":
        while True:
            os.write(1, b"x" * 4096)
    elif how == "ahead":
        os.write(1, b"".join(b"%d ok\n" % number for number in range(1000)))
    elif how == "wait":
        # Until the test has seen that it has been called.
        open(MOOD + ".called", "w").close()
        while os.path.exists(MOOD):
            time.sleep(0.01)
    else:
        raise AssertionError(how)


class State:
    """The lock, while no other client looks at it."""

    def __enter__(self):
        self.guard = open(os.path.join(DIR, "guard"), "w")
        fcntl.flock(self.guard, fcntl.LOCK_EX)
        self.path = os.path.join(DIR, "lock")
        try:
            with open(self.path) as file:
                self.lock = json.load(file)
        except FileNotFoundError:
            self.lock = None
        if self.lock and self.lock["until"] and self.lock["until"] < time.time():
            self.lock = None
        return self

    def set(self, lock):
        if lock is None:
            os.unlink(self.path)
            return
        # Whole at every moment, for those who only read.
        with open(self.path + ".new", "w") as file:
            json.dump(lock, file)
        os.rename(self.path + ".new", self.path)

    def __exit__(self, *_):
        self.guard.close()


class Ioctx:
    def __init__(self, client):
        self.client = client
        self.namespace = ""

    def set_namespace(self, namespace):
        self.namespace = namespace

    def lock_exclusive(self, key, name, cookie, desc="", duration=None, flags=0):
        behave("renew" if flags else "take")
        owner = [self.client, self.namespace, key, name, cookie]
        with State() as state:
            mine = state.lock is not None and state.lock["owner"] == owner
            if flags:
                if not mine:
                    raise Error("not yours", errno.ENOENT)
            elif state.lock is not None:
                raise Error("busy", errno.EEXIST if mine else errno.EBUSY)
            until = time.time() + duration if duration else None
            state.set({"owner": owner, "desc": desc, "until": until})

    def unlock(self, key, name, cookie):
        behave("free")
        owner = [self.client, self.namespace, key, name, cookie]
        with State() as state:
            if state.lock is None or state.lock["owner"] != owner:
                raise Error("not yours", errno.ENOENT)
            state.set(None)


class Rados:
    DEFAULT_CONF_FILES = -1

    def __init__(self, name, clustername, conffile):
        assert (name, clustername, conffile) == ("client.test", "ceph", -1)

    def conf_set(self, name, value):
        assert int(value) > 0, name

    def connect(self):
        behave("connect")

    def open_ioctx(self, pool):
        if pool != "pool":
            raise Error(f"error opening pool '{pool}'", errno.ENOENT)
        # What librados takes from Ceph's monitors: another one for each connection.
        return Ioctx(f"client.{os.getpid()}")
