"""Two SMB sessions through two addresses: file content, share modes, byte ranges, change notify,
oplocks, leases.

usage: smb_client.py CHECK ADDRESS ADDRESS; prints `ok`, or what was wrong, and exits 0 or 1.
Runs against any server with share `share` and user root, password secret.
"""
import os
import struct
import sys
import threading
import time

from impacket import nt_errors
from impacket import smb3structs as s
from impacket.smbconnection import SMBConnection

SHARE_ALL = s.FILE_SHARE_READ | s.FILE_SHARE_WRITE | s.FILE_SHARE_DELETE
ACCESS = s.FILE_READ_DATA | s.FILE_WRITE_DATA
AT_ONCE = s.SMB2_LOCKFLAG_FAIL_IMMEDIATELY
EXCLUSIVE = s.SMB2_LOCKFLAG_EXCLUSIVE_LOCK | AT_ONCE
SHARED = s.SMB2_LOCKFLAG_SHARED_LOCK | AT_ONCE
UNLOCK = s.SMB2_LOCKFLAG_UNLOCK


class Session:
    def __init__(self, address):
        self.conn = SMBConnection(address, address, preferredDialect=s.SMB2_DIALECT_30, timeout=30)
        self.conn.login("root", "secret")
        self.tree = self.conn.connectTree("share")

    def open(self, name, share=SHARE_ALL, disposition=s.FILE_OPEN_IF):
        return self.conn.createFile(
            self.tree, name, desiredAccess=ACCESS, shareMode=share,
            creationDisposition=disposition)

    def close(self, handle):
        self.conn.closeFile(self.tree, handle)

    def write(self, handle, data):
        self.conn.writeFile(self.tree, handle, data, 0)

    def read(self, handle, length):
        return self.conn.readFile(self.tree, handle, 0, length)

    def lock(self, handle, offset, length, flags):
        """One range. The library's own method does not work with Python 3."""
        element = s.SMB2_LOCK_ELEMENT()
        element["Offset"], element["Length"], element["Flags"] = offset, length, flags
        lock = s.SMB2Lock()
        lock["FileID"], lock["LockCount"], lock["LockSequence"] = handle, 1, 0
        lock["Locks"] = element.getData()
        self.receive(self.send(s.SMB2_LOCK, lock))

    def send(self, command, data):
        """Sends a packet; its number."""
        smb = self.conn.getSMBServer()
        packet = smb.SMB_PACKET()
        packet["Command"], packet["TreeID"], packet["Data"] = command, self.tree, data
        return smb.sendSMB(packet)

    def receive(self, number):
        """The answer with that number; an error if it is one."""
        answer = self.conn.getSMBServer().recvSMB(number)
        answer.isValidAnswer(nt_errors.STATUS_SUCCESS)
        return answer


def status(work, *args):
    """Name of the status with which the server refused; `done` if it did not."""
    try:
        work(*args)
    except Exception as error:
        code = error.get_error_code() if hasattr(error, "get_error_code") else None
        code = code if code is not None else getattr(error, "getErrorCode", lambda: None)()
        return nt_errors.ERROR_MESSAGES.get(code, (repr(error),))[0]
    return "done"


def expect(what, got, wanted):
    if got != wanted:
        sys.exit(f"{what}: {got!r}, not {wanted!r}")


def content(a, b, name):
    first = a.open(name)
    a.write(first, b"from the first")
    second = b.open(name)
    expect("read through the second", b.read(second, 14), b"from the first")
    b.write(second, b"FROM")
    expect("read back", a.read(first, 14), b"FROM the first")
    a.close(first)
    b.close(second)


def share_modes(a, b, name):
    first = a.open(name, 0)
    expect("open of what is not shared", status(b.open, name), "STATUS_SHARING_VIOLATION")
    a.close(first)
    second = b.open(name, s.FILE_SHARE_READ)
    expect("the other way round", status(a.open, name), "STATUS_SHARING_VIOLATION")
    b.close(second)
    a.close(a.open(name))


def ranges(a, b, name):
    first, second = a.open(name), b.open(name)
    a.lock(first, 0, 10, EXCLUSIVE)
    expect("lock", status(b.lock, second, 5, 10, EXCLUSIVE), "STATUS_LOCK_NOT_GRANTED")
    expect("read", status(b.read, second, 5), "STATUS_FILE_LOCK_CONFLICT")
    b.lock(second, 10, 10, EXCLUSIVE)
    a.lock(first, 0, 10, UNLOCK)
    b.lock(second, 0, 10, SHARED)
    a.lock(first, 0, 10, SHARED)
    expect("write", status(a.lock, first, 0, 10, EXCLUSIVE), "STATUS_LOCK_NOT_GRANTED")
    # A lock that its holder's end gives back.
    a.close(first)
    b.close(second)
    first = a.open(name)
    a.lock(first, 0, 20, EXCLUSIVE)
    a.close(first)


def hold(a, b, name):
    """Keeps a file open and locked through the first, until a line comes in; then the lock must
    still be there for the second, and the first must still answer."""
    first = a.open(name)
    a.write(first, b"held")
    a.lock(first, 0, 4, EXCLUSIVE)
    print("held", flush=True)
    sys.stdin.readline()
    other = Session(sys.argv[3])
    second = other.open(name)
    expect("lock", status(other.lock, second, 0, 4, EXCLUSIVE), "STATUS_LOCK_NOT_GRANTED")
    expect("read", a.read(first, 4), b"held")
    a.lock(first, 0, 4, UNLOCK)
    other.lock(second, 0, 4, EXCLUSIVE)


def notify(a, b, name):
    """A watch of a folder through the first is answered when the second makes a file."""
    folder = f"of-{name}"
    a.conn.createDirectory("share", folder)
    smb = a.conn.getSMBServer()
    handle = smb.create(
        a.tree, folder, s.FILE_LIST_DIRECTORY, SHARE_ALL, s.FILE_DIRECTORY_FILE, s.FILE_OPEN, 0)
    watch = s.SMB2ChangeNotify()
    watch["FileID"], watch["OutputBufferLength"] = handle, 4096
    watch["CompletionFilter"] = s.FILE_NOTIFY_CHANGE_FILE_NAME
    number = a.send(s.SMB2_CHANGE_NOTIFY, watch)
    told = []
    wait = threading.Thread(target=lambda: told.append(a.receive(number)), daemon=True)
    wait.start()
    # The other node learns of the watch a while after it was set.
    for turn in range(100):
        if told:
            break
        b.close(b.open(f"{folder}\\{turn}"))
        time.sleep(0.3)
    expect("change notify", len(told), 1)


def oplock(a, b, name):
    """An oplock that the first has is broken for the second, whose open waits for that."""
    smb = a.conn.getSMBServer()
    handle = smb.create(
        a.tree, name, ACCESS, SHARE_ALL, 0, s.FILE_OPEN_IF, 0,
        oplockLevel=s.SMB2_OPLOCK_LEVEL_BATCH)
    opened = []
    other = threading.Thread(target=lambda: opened.append(status(b.open, name)), daemon=True)
    other.start()
    told = smb.recvSMB(0xFFFFFFFFFFFFFFFF)
    expect("command", told["Command"], s.SMB2_OPLOCK_BREAK)
    # The library takes the server's own message for an answer, and would use its next number twice.
    smb._Connection["SequenceWindow"] += 1
    expect("open before the answer", opened, [])
    answer = s.SMB2OplockBreakAcknowledgment()
    answer["FileID"], answer["OplockLevel"] = handle, s.SMB2_OPLOCK_LEVEL_NONE
    a.receive(a.send(s.SMB2_OPLOCK_BREAK, answer))
    other.join(30)
    expect("open after it", opened, ["done"])


class LeaseRequest:
    """Create context `RqLs` ([MS-SMB2] 2.2.13.2.8)."""

    def __init__(self, key, state):
        self.data = struct.pack("<LHHHHL4s4x16sLLQ", 0, 16, 4, 0, 24, 32, b"RqLs", key, state, 0, 0)

    def getData(self):
        return self.data


def lease(a, b, name):
    """A lease to read, write and keep open that the first has: the second's open takes the writing and
    waits for the first's answer, its write takes the rest."""
    read, keep, write = (
        s.SMB2_LEASE_READ_CACHING, s.SMB2_LEASE_HANDLE_CACHING, s.SMB2_LEASE_WRITE_CACHING)
    key = os.urandom(16)
    smb = a.conn.getSMBServer()
    smb.create(
        a.tree, name, ACCESS, SHARE_ALL, 0, s.FILE_OPEN_IF, 0,
        oplockLevel=s.SMB2_OPLOCK_LEVEL_LEASE,
        createContexts=[LeaseRequest(key, read | keep | write)])

    def told():
        packet = smb.recvSMB(0xFFFFFFFFFFFFFFFF)
        expect("command", packet["Command"], s.SMB2_OPLOCK_BREAK)
        # As in `oplock`.
        smb._Connection["SequenceWindow"] += 1
        size, _, flags, of, now, new = struct.unpack_from("<HHL16sLL", packet["Data"])
        expect("size and key", (size, of), (44, key))
        return now, new, flags

    handles, opened = [], []
    other = threading.Thread(
        target=lambda: opened.append(status(lambda: handles.append(b.open(name)))), daemon=True)
    other.start()
    expect("break by an open", told(), (read | keep | write, read | keep, 1))
    expect("open before the answer", opened, [])
    a.receive(a.send(s.SMB2_OPLOCK_BREAK, struct.pack("<HHL16sLQ", 36, 0, 0, key, read | keep, 0)))
    other.join(30)
    expect("open after it", opened, ["done"])
    b.write(handles[0], b"new")
    now, new, _ = told()
    expect("break by a write", (now, new), (read | keep, 0))


CHECKS = {
    "content": content, "share-modes": share_modes, "ranges": ranges, "hold": hold,
    "notify": notify, "oplock": oplock, "lease": lease,
}


def main():
    check, first, second = sys.argv[1:4]
    CHECKS[check](Session(first), Session(second), f"{check}-{first}-{second}.bin")
    print("ok")


main()
