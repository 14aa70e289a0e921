# A process that works on a database with libtdb, by its C interface, and says what it does: the
# other side of the worker in differential.rs, by the same rules.
import sys, os, random, ctypes as c

path, flags, hash_size, name, seed, ops, plain, mutexes = sys.argv[1:9]
flags, hash_size, seed, ops = int(flags), int(hash_size), int(seed), int(ops)
plain, mutexes = plain == '1', mutexes == '1'
rnd = random.Random(seed)
own_prefix = name.encode() + b'-'

class D(c.Structure):
    _fields_ = [('p', c.c_void_p), ('n', c.c_size_t)]

lib = c.CDLL('libtdb.so.1')
libc = c.CDLL('libc.so.6')
libc.free.argtypes = [c.c_void_p]
lib.tdb_open.restype = c.c_void_p
lib.tdb_open.argtypes = [c.c_char_p, c.c_int, c.c_int, c.c_int, c.c_int]
lib.tdb_fetch.restype = D
lib.tdb_fetch.argtypes = [c.c_void_p, D]
lib.tdb_delete.argtypes = [c.c_void_p, D]
lib.tdb_exists.argtypes = [c.c_void_p, D]
lib.tdb_store.argtypes = [c.c_void_p, D, D, c.c_int]
lib.tdb_error.argtypes = [c.c_void_p]
VISIT = c.CFUNCTYPE(c.c_int, c.c_void_p, D, D, c.c_void_p)
lib.tdb_traverse_read.argtypes = [c.c_void_p, VISIT, c.c_void_p]
for f in 'transaction_start transaction_commit transaction_cancel lockall unlockall close'.split():
    getattr(lib, 'tdb_' + f).argtypes = [c.c_void_p]
LOCK = 3    # tdb_error after a lock that was not got
NOEXIST = 8
RDONLY = 10

def say(text):
    print(text, flush=True)

def fail(text):
    say('! ' + text)
    os._exit(1)

def opened():
    t = lib.tdb_open(path.encode(), hash_size, flags, os.O_RDWR | os.O_CREAT, 0o600)
    return t or fail('cannot open')

t = opened()
mine = {}

def d(b):
    return D(c.cast(c.c_char_p(b), c.c_void_p), len(b))

def bytes_of(x):
    return c.string_at(x.p, x.n) if x.n else b''

def get(k):
    v = lib.tdb_fetch(t, d(k))
    if not v.p:
        if lib.tdb_error(t) != NOEXIST:
            fail('fetch of %r: error %d' % (k, lib.tdb_error(t)))
        return None
    found = bytes_of(v)
    libc.free(v.p)
    return found

def must(f, *words):
    if getattr(lib, 'tdb_' + f)(t, *words) != 0:
        fail('%s: error %d' % (f, lib.tdb_error(t)))

def store(k, v):
    must('store', d(k), d(v), 0)

def value(i):
    n = rnd.choice((rnd.randrange(60), rnd.randrange(800), rnd.randrange(5000)))
    return b'%s:%d:' % (name.encode(), i) + bytes([97 + rnd.randrange(26)]) * n

def sound(v):
    parts = v.split(b':', 2)
    return len(parts) == 3 and parts[1].isdigit() and len(set(parts[2])) < 2

def told(changes):
    return ' '.join(k.hex() + '=' + ('-' if v is None else v.hex()) for k, v in changes)

def change(k, v):
    if v is not None:
        store(k, v)
        mine[k] = v
        return
    found = lib.tdb_delete(t, d(k)) == 0
    if not found and lib.tdb_error(t) != NOEXIST:
        fail('delete of %r: error %d' % (k, lib.tdb_error(t)))
    if found != (k in mine):
        fail('delete of %r: %s' % (k, found))
    mine.pop(k, None)

def own():
    return own_prefix + b'%d' % rnd.randrange(25)

def count():
    store(b'counter', b'%d' % (int(get(b'counter') or b'0') + 1))

def transaction(i):
    global mine
    before = dict(mine)
    must('transaction_start')
    changes = {own(): value(i) if rnd.randrange(3) else None for _ in range(rnd.randrange(1, 5))}
    for k, v in changes.items():
        change(k, v)
    v = value(i)
    store(b'left', v)
    store(b'right', v)
    count()
    say('B + ' + told(changes.items()))
    if rnd.randrange(6) == 0:
        must('transaction_cancel')
        mine = before
        say('C')
    else:
        must('transaction_commit')
        say('A')

def traverse():
    global t
    seen = {}
    def visit(t, k, v, _):
        k, v = bytes_of(k), bytes_of(v)
        if k != b'counter' and not sound(v):
            fail('%r holds %r' % (k, v[:60]))
        if k.startswith(own_prefix):
            seen[k] = v
        return 0
    if lib.tdb_traverse_read(t, VISIT(visit), None) < 0:
        # Somebody wanted all records just then, and the kernel found the deadlock. Or somebody died in
        # a commit: a read traverse may not undo that, the next operation will.
        if lib.tdb_error(t) not in (LOCK, RDONLY):
            fail('traverse: error %d' % lib.tdb_error(t))
        # The handle still has the lock of the record on which it stood, for ever.
        lib.tdb_close(t)
        t = opened()
        return
    if seen != mine:
        fail('own records differ: %r' % [(k, v[:12]) for k, v in set(seen.items()) ^ set(mine.items())])

say('ready')
i = 0
while ops == 0 or i < ops:
    i += 1
    x = rnd.randrange(100)
    if x < 45 and plain:
        k, v = own(), value(i) if rnd.randrange(3) else None
        say('B ' + told([(k, v)]))
        change(k, v)
        say('A')
    elif x < 20 or 75 <= x < 85:
        transaction(i)
    elif 45 <= x < 60:
        k = own()
        if get(k) != mine.get(k):
            fail('get of %r' % k)
    elif 60 <= x < 75:
        k = b'shared-%d' % rnd.randrange(10)
        if plain and rnd.randrange(2):
            store(k, value(i))
        else:
            v = get(k)
            if v is not None and not sound(v):
                fail('%r holds %r' % (k, v[:60]))
    elif 85 <= x < 90 and not mutexes:
        # With mutexes libtdb's traverse and its own commit wait for each other for ever: the commit
        # for the record on which the traverse stands, the traverse for the chain.
        traverse()
    elif 90 <= x < 93 and plain and not mutexes:
        if lib.tdb_lockall(t) != 0:
            continue
        say('B +')
        count()
        must('unlockall')
        say('A')
say('done')
lib.tdb_close(t)
