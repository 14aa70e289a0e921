"""Many SMB sessions that open, lock, rename and watch, while their servers come and go.

usage: smb_load.py SESSIONS ADDRESS...; works until its standard input ends, then prints one JSON
object. Runs against any server with share `share` and user root, password secret. A line `note TEXT` says
what happens to the servers from now on, every other line asks how far it is.

What it counts: `done`, by kind of work; `disconnects`: a session's end, after which it is made anew;
`errors`: every other status that the work does not allow for; `violations`: two sessions that held one
lock at once, content that is not what was written last under a lock, names that are not where they
were renamed to.
"""
import collections
import json
import os
import random
import struct
import sys
import threading
import time

from impacket import nt_errors
from impacket import smb3structs as s
from impacket.nmb import NetBIOSError, NetBIOSTimeout
from impacket.smbconnection import SMBConnection

SHARE_ALL = s.FILE_SHARE_READ | s.FILE_SHARE_WRITE | s.FILE_SHARE_DELETE
ACCESS = s.FILE_READ_DATA | s.FILE_WRITE_DATA
AT_ONCE = s.SMB2_LOCKFLAG_FAIL_IMMEDIATELY
EXCLUSIVE = s.SMB2_LOCKFLAG_EXCLUSIVE_LOCK | AT_ONCE
UNLOCK = s.SMB2_LOCKFLAG_UNLOCK
# Files that all sessions fight for, and ranges in each.
HOT, RANGES = 4, 8
# What is done, as often as it is named, and for how long, at most, three locks of ten are held: other
# ones to look for a cause.
WORKS = os.environ.get("CTDB_SMB_WORKS", "own_file,share_mode,locks,locks,watch").split(",")
HELD = float(os.environ.get("CTDB_SMB_HELD", "0.2"))
# An answer that takes longer is an error.
TIMEOUT = 60
# The session has ended on the server: its client is to come again.
GONE = {
    "STATUS_CONNECTION_DISCONNECTED", "STATUS_CONNECTION_RESET", "STATUS_NETWORK_NAME_DELETED",
    "STATUS_USER_SESSION_DELETED", "STATUS_FILE_CLOSED", "STATUS_NETWORK_SESSION_EXPIRED",
}

stop = threading.Event()
guard = threading.Lock()
done = collections.Counter()
errors = collections.Counter()
disconnects = collections.Counter()
violations = []
stalls = [0.0]
# Who holds which range of which hot file, as far as its holders know.
holders = collections.defaultdict(list)
# Every lock of the last minutes, by its token.
locks_of = {}
KEPT = 20000
# What happened to the servers, and when.
notes = [(time.monotonic(), "nothing yet")]


class Disconnected(Exception):
    pass


class Lock:
    """A range that a session was given, and what it did then; times are monotonic."""

    def __init__(self, worker, place, token, asked):
        self.worker, self.place, self.token = worker, place, token
        self.steps = [("asked", asked)]
        # The server had given it by then.
        self.given = self.step("given")
        # When it was given to somebody else, who had asked after this one had it.
        self.stolen, self.thief = None, None

    def step(self, what):
        now = time.monotonic()
        self.steps.append((what, now))
        return now

    def __str__(self):
        began = self.steps[0][1]
        steps = self.steps[1:4] + self.steps[4:][-6:]
        steps = ", ".join(f"{what} {at - began:.3f}" for what, at in steps)
        return (f"{self.token.decode()} of session {self.worker.number} with {self.worker.address}, "
                f"asked for at {began - notes[0][0]:.3f}: {steps}")


def status_of(error):
    if isinstance(error, (OSError, NetBIOSError)):
        return None
    code = error.get_error_code() if hasattr(error, "get_error_code") else None
    code = code if code is not None else getattr(error, "getErrorCode", lambda: None)()
    if code is None:
        return None
    return nt_errors.ERROR_MESSAGES.get(code, (hex(code),))[0]


class Session:
    def __init__(self, address, doing):
        """`doing` is told what is waited for."""
        doing("connects")
        self.conn = SMBConnection(
            address, address, preferredDialect=s.SMB2_DIALECT_30, timeout=TIMEOUT)
        try:
            doing("logs in")
            self.conn.login("root", "secret")
            doing("connects to the share")
            self.tree = self.conn.connectTree("share")
        except Exception:
            # A connection that nobody uses any more would be kept until it is collected.
            self.end()
            raise
        self.smb = self.conn.getSMBServer()

    def end(self):
        """Without a word."""
        try:
            self.conn.getSMBServer().get_socket().close()
        except (OSError, AttributeError):
            # It has ended already.
            pass

    def open(self, name, share=SHARE_ALL, access=ACCESS, disposition=s.FILE_OPEN_IF, options=0):
        return self.conn.createFile(
            self.tree, name, desiredAccess=access, shareMode=share, creationOption=options,
            creationDisposition=disposition)

    def close(self, handle):
        self.conn.closeFile(self.tree, handle)

    def write(self, handle, offset, data):
        self.conn.writeFile(self.tree, handle, data, offset)

    def read(self, handle, offset, length):
        return self.conn.readFile(self.tree, handle, offset, length)

    def lock(self, handle, offset, length, flags):
        element = s.SMB2_LOCK_ELEMENT()
        element["Offset"], element["Length"], element["Flags"] = offset, length, flags
        lock = s.SMB2Lock()
        lock["FileID"], lock["LockCount"], lock["LockSequence"] = handle, 1, 0
        lock["Locks"] = element.getData()
        self.receive(self.send(s.SMB2_LOCK, lock))

    def rename(self, handle, name):
        name = name.encode("utf-16le")
        # FILE_RENAME_INFORMATION_TYPE_2.
        data = struct.pack("<B7xQL", 0, 0, len(name)) + name
        self.smb.setInfo(
            self.tree, handle, data, infoType=s.SMB2_0_INFO_FILE, fileInfoClass=s.SMB2_FILE_RENAME_INFO)

    def send(self, command, data):
        packet = self.smb.SMB_PACKET()
        packet["Command"], packet["TreeID"], packet["Data"] = command, self.tree, data
        return self.smb.sendSMB(packet)

    def receive(self, number):
        answer = self.smb.recvSMB(number)
        answer.isValidAnswer(nt_errors.STATUS_SUCCESS)
        return answer


class Worker(threading.Thread):
    def __init__(self, number, address):
        super().__init__(daemon=True)
        self.number, self.address = number, address
        self.chance = random.Random(number)
        self.session = None
        self.files = 0
        # What it waits for and since when, and why the last session ended or could not be made.
        self.waits, self.since = "starts", time.monotonic()
        self.why = None

    def doing(self, what):
        self.waits, self.since = what, time.monotonic()

    def told(self):
        """For who asks why it is not there."""
        age = time.monotonic() - self.since
        return f"session {self.number} with {self.address}: {self.waits} for {age:.1f} s; {self.why}"

    def ask(self, allowed, work, *args, **more):
        """Does one request. The status if it is one of the allowed ones, `None` after success."""
        start = time.monotonic()
        try:
            return None, work(*args, **more)
        except NetBIOSTimeout:
            with guard:
                errors[f"{work.__name__}: no answer in {TIMEOUT} s"] += 1
            raise Disconnected from None
        except (OSError, NetBIOSError):
            raise Disconnected from None
        except Exception as error:
            status = status_of(error)
            if status in allowed:
                return status, None
            if status in GONE:
                raise Disconnected from None
            with guard:
                errors[f"{work.__name__}: {status or repr(error)}"] += 1
            # What is open is given back with the session.
            raise Disconnected from None
        finally:
            with guard:
                stalls[0] = max(stalls[0], time.monotonic() - start)

    def must(self, work, *args, **more):
        return self.ask((), work, *args, **more)[1]

    def own_file(self):
        """A file of its own: written, read, renamed, found, deleted."""
        self.files += 1
        name, other = f"own-{self.number}-{self.files}", f"was-{self.number}-{self.files}"
        text = f"{self.number}:{self.files}".encode() * 50
        session = self.session
        access = ACCESS | s.DELETE
        handle = self.must(session.open, name, access=access)
        self.must(session.write, handle, 0, text)
        self.must(session.rename, handle, other)
        self.must(session.close, handle)
        found, _ = self.ask(
            ("STATUS_OBJECT_NAME_NOT_FOUND",), session.open, name, disposition=s.FILE_OPEN)
        if found is None:
            violate(f"{name} is there after it was renamed")
        handle = self.must(
            session.open, other, access=access, disposition=s.FILE_OPEN,
            options=s.FILE_DELETE_ON_CLOSE)
        got = self.must(session.read, handle, 0, len(text))
        if got != text:
            violate(f"{other} holds {got[:40]!r}")
        self.must(session.close, handle)

    def share_mode(self):
        """A file that one alone may have open."""
        name = f"alone-{self.chance.randrange(HOT)}"
        status, handle = self.ask(
            ("STATUS_SHARING_VIOLATION",), self.session.open, name, share=0)
        if status is None:
            self.must(self.session.write, handle, 0, b"x" * 64)
            self.must(self.session.close, handle)

    def locks(self):
        """A range that one alone may hold: what it writes there nobody else changes meanwhile."""
        place = (self.chance.randrange(HOT), self.chance.randrange(RANGES))
        session, offset = self.session, place[1] * 16
        handle = self.must(session.open, f"hot-{place[0]}")
        asked = time.monotonic()
        status, _ = self.ask(("STATUS_LOCK_NOT_GRANTED",), session.lock, handle, offset, 16, EXCLUSIVE)
        if status is None:
            token = f"{self.number:08x}{self.chance.getrandbits(32):08x}".encode()
            with guard:
                mine = Lock(self, place, token, asked)
                for other in holders[place]:
                    # Right if that session has ended, which it may not know yet. Of who was given it after
                    # this one asked nobody knows here who came first.
                    if other.given < asked and other.stolen is None:
                        other.stolen, other.thief = mine.given, mine
                holders[place].append(mine)
                locks_of[token] = mine
                if len(locks_of) > KEPT:
                    del locks_of[next(iter(locks_of))]
            try:
                self.must(session.write, handle, offset, token)
                mine.step("written")
                rest = self.chance.random() * HELD if self.chance.random() < 0.3 else 0
                until = time.monotonic() + rest
                right = self.look(mine, handle)
                while right and time.monotonic() < until:
                    time.sleep(min(0.05, rest))
                    right = self.look(mine, handle)
            except Disconnected:
                mine.step("ended")
                raise
            finally:
                # Before the server gives it to somebody else.
                with guard:
                    holders[place].remove(mine)
            self.must(session.lock, handle, offset, 16, UNLOCK)
            mine.step("given back")
        self.must(session.close, handle)

    def look(self, mine, handle):
        """Whether what is locked is what was written there, and still this session's."""
        start = mine.step("reads")
        got = self.must(self.session.read, handle, mine.place[1] * 16, 16)
        mine.step("read")
        with guard:
            stolen = mine.stolen is not None and mine.stolen < start
            if stolen:
                violate(f"{mine.place}: given to {mine.thief} while held by {mine}", locked=True)
            if got != mine.token:
                violate(f"{mine.place}: {got!r}, {locks_of.get(got)}, was read by {mine}", locked=True)
        return not stolen and got == mine.token

    def watch(self):
        """A folder that is watched, in which something happens."""
        session, folder = self.session, f"watched-{self.number}"
        handle = self.must(
            session.open, folder, access=s.FILE_LIST_DIRECTORY, options=s.FILE_DIRECTORY_FILE)
        request = s.SMB2ChangeNotify()
        request["FileID"], request["OutputBufferLength"] = handle, 4096
        request["CompletionFilter"] = s.FILE_NOTIFY_CHANGE_FILE_NAME
        number = self.must(session.send, s.SMB2_CHANGE_NOTIFY, request)
        self.files += 1
        name = f"{folder}\\{self.files}"
        file = self.must(
            session.open, name, access=ACCESS | s.DELETE, options=s.FILE_DELETE_ON_CLOSE)
        self.must(session.close, file)
        self.must(session.receive, number)
        self.must(session.close, handle)

    def run(self):
        works = [getattr(self, name) for name in WORKS]
        while not stop.is_set():
            try:
                if self.session is None:
                    self.session = self.connect()
                    if self.session is None:
                        continue
                work = self.chance.choice(works)
                self.doing(work.__name__)
                work()
                with guard:
                    done[work.__name__] += 1
                time.sleep(self.chance.random() * PAUSE)
            except Disconnected as error:
                self.why = f"{self.waits}: {error.__context__!r}"
                with guard:
                    disconnects[self.address] += 1
                self.session.end()
                self.session = None

    def connect(self):
        """A new session; none while the address is nobody's or its server begins or ends."""
        try:
            return Session(self.address, self.doing)
        except Exception as error:
            self.why = f"{self.waits}: {status_of(error) or repr(error)}"
            time.sleep(0.1 + self.chance.random() * 0.2)
            return None


def violate(text, locked=False):
    now = time.monotonic()
    recent = "; ".join(f"{what} {now - at:.3f} s ago" for at, what in notes[-3:])
    text = f"at {now - notes[0][0]:.3f} s: {text} [{recent}]"
    if locked:
        violations.append(text)
    else:
        with guard:
            violations.append(text)


def main():
    global PAUSE
    sessions, addresses = int(sys.argv[1]), sys.argv[2:]
    # The whole of it asks some 200 times a second, however many they are.
    PAUSE = sessions / 40
    workers = [Worker(n, addresses[n % len(addresses)]) for n in range(sessions)]
    for worker in workers:
        worker.start()
    for line in sys.stdin:
        if line.startswith("note "):
            notes.append((time.monotonic(), line[5:].rstrip()))
            continue
        # How far it is, for who waits for that.
        with guard:
            absent = [worker for worker in workers if worker.session is None]
            print(json.dumps({
                "connected": len(workers) - len(absent), "done": sum(done.values()),
                "absent": [worker.told() for worker in absent], "errors": dict(errors),
            }), flush=True)
    stop.set()
    late = time.monotonic() + TIMEOUT + 5
    for worker in workers:
        worker.join(max(0, late - time.monotonic()))
    stuck = sum(worker.is_alive() for worker in workers)
    with guard:
        print(json.dumps({
            "done": dict(done), "errors": dict(errors), "disconnects": sum(disconnects.values()),
            "violations": violations[:20], "stuck": stuck, "longest": stalls[0],
        }), flush=True)
    os._exit(0)


main()
