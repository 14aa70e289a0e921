"""A client of the witness service ([MS-SWN]).

usage: witness.py list ADDRESS: a line for each interface that it tells of: address and state.
usage: witness.py watch ADDRESS NAME WATCHED: registers for an address of a server, prints `registered`,
and what it is told after that, a line each: `change ADDRESS-OR-NAME STATE`, `move ADDRESS...`.
"""
import socket
import struct
import sys
import time

from impacket.dcerpc.v5 import epm, transport
from impacket.dcerpc.v5.rpcrt import RPC_C_AUTHN_LEVEL_PKT_INTEGRITY
from impacket.uuid import uuidtup_to_bin

INTERFACE = uuidtup_to_bin(("ccd8c074-d0e5-4a40-92b4-d074faa6ba28", "1.1"))
LIST, REGISTER, NOTIFY = 0, 1, 3
VERSION_1 = 0x00010001
STATES = {0: "unknown", 1: "available", 255: "unavailable"}
PATIENCE = 60


def connect(address):
    binding = epm.hept_map(address, INTERFACE, protocol="ncacn_ip_tcp")
    way = transport.DCERPCTransportFactory(binding)
    way.set_credentials("root", "secret")
    way.set_connect_timeout(10)
    dce = way.get_dce_rpc()
    dce.set_auth_level(RPC_C_AUTHN_LEVEL_PKT_INTEGRITY)
    dce.connect()
    dce.bind(INTERFACE)
    return dce


def patiently(work, *args):
    """The service is started by the first call for it."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return work(*args)
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def ask(dce, number, data=b""):
    dce.call(number, data)
    answer = dce.recv()
    code, = struct.unpack("<L", answer[-4:])
    if code != 0:
        sys.exit(f"call {number}: error {code:#x}")
    return answer


def string(text, referent):
    """A unique pointer to a string with its NUL."""
    units = (text + "\0").encode("utf-16le")
    count = len(text) + 1
    data = struct.pack("<LLLL", referent, count, 0, count) + units
    return data + bytes(-len(data) % 4)


def interfaces(dce):
    answer = ask(dce, LIST)
    count, = struct.unpack_from("<L", answer, 4)
    for at in range(16, 16 + 552 * count, 552):
        group = answer[at:at + 520].decode("utf-16le").split("\0")[0]
        _, state, v4 = struct.unpack_from("<LHxxL", answer, at + 520)
        flags, = struct.unpack_from("<L", answer, at + 548)
        yield group, socket.inet_ntoa(struct.pack("<L", v4)), STATES.get(state, str(state)), flags


def told(answer):
    """The messages of a notification (2.2.2.4)."""
    kind, length, count = struct.unpack_from("<LLL", answer, 4)
    body = answer[24:24 + length]
    for _ in range(count):
        if kind == 1:
            size, state = struct.unpack_from("<LL", body)
            name = body[8:size].decode("utf-16le").rstrip("\0")
            yield f"change {name} {STATES.get(state, state)}"
        else:
            size, _, addresses = struct.unpack_from("<LLL", body)
            found = []
            for at in range(12, size, 24):
                _, v4 = struct.unpack_from("<L4s", body, at)
                found.append(socket.inet_ntoa(v4))
            word = {2: "move", 3: "share-move", 4: "ip-change"}.get(kind, f"kind-{kind}")
            yield " ".join([word, str(addresses), *found])
        body = body[size:]


def main():
    what, address = sys.argv[1:3]
    dce = patiently(connect, address)
    if what == "list":
        for group, where, state, flags in interfaces(dce):
            print(group, where, state, f"{flags:#x}")
        return
    name, watched = sys.argv[3:5]
    words = struct.pack("<L", VERSION_1)
    for number, text in enumerate([name, watched, "client"]):
        words += string(text, 0x20000 + 4 * number)
    context = ask(dce, REGISTER, words)[:20]
    print("registered", flush=True)
    while True:
        for line in told(ask(dce, NOTIFY, context)):
            print(line, flush=True)


main()
