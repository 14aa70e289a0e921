# A process that works on a database with libtdb, by its C interface, and says what it does: the
# other side of the worker in differential.rs, by the same rules.
import sys, os, random, ctypes as c

path, flags, hash_size, name, seed, ops, style, mutexes = sys.argv[1:9]
flags, hash_size, seed, ops = int(flags), int(hash_size), int(seed), int(ops)
plain, tears, mutexes = style != 'commits', style == 'killed', mutexes == '1'
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
lib.tdb_traverse.argtypes = [c.c_void_p, VISIT, c.c_void_p]
lib.tdb_append.argtypes = [c.c_void_p, D, D]
for f in 'chainlock chainunlock chainlock_read chainunlock_read'.split():
    getattr(lib, 'tdb_' + f).argtypes = [c.c_void_p, D]
for f in ('transaction_start transaction_prepare_commit transaction_commit transaction_cancel '
          'lockall unlockall lockall_read unlockall_read close').split():
    getattr(lib, 'tdb_' + f).argtypes = [c.c_void_p]
CORRUPT = 1
LOCK = 3    # tdb_error after a lock that was not got
NOEXIST = 8
RDONLY = 10

def say(text):
    print(text, flush=True)

t = None

def fail(text):
    # A damaged file is told as such; who has caused it is for the checker.
    damaged = t and lib.tdb_error(t) == CORRUPT
    say(('D ' if damaged else '! ') + text)
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

def some_change(i):
    k, x = own(), rnd.randrange(12)
    if x < 4:
        return k, 'delete', None
    if x < 6 and k in mine:
        # Only more of the same letter is sound.
        last = mine[k][-1:]
        return k, 'append', (b'z' if last == b':' else last) * rnd.randrange(300)
    return k, 'store', value(i)

def after(k, how, v):
    return mine[k] + v if how == 'append' else v

def change(k, how, v):
    if how == 'append':
        must('append', d(k), d(v))
        mine[k] += v
    elif how == 'store':
        store(k, v)
        mine[k] = v
    else:
        found = lib.tdb_delete(t, d(k)) == 0
        if not found and lib.tdb_error(t) != NOEXIST:
            fail('delete of %r: error %d' % (k, lib.tdb_error(t)))
        if found != (k in mine):
            fail('delete of %r: %s' % (k, found))
        mine.pop(k, None)

def plainly(i):
    k, how, v = some_change(i)
    say('B ' + told([(k, after(k, how, v))]))
    change(k, how, v)
    say('A')

def own():
    return own_prefix + b'%d' % rnd.randrange(25)

def count():
    store(b'counter', b'%d' % (int(get(b'counter') or b'0') + 1))

def transaction(i):
    global mine
    before = dict(mine)
    must('transaction_start')
    changes = {}
    for _ in range(rnd.randrange(1, 5)):
        k, how, v = some_change(i)
        change(k, how, v)
        changes[k] = mine.get(k)
    v = value(i)
    store(b'left', v)
    store(b'right', v)
    count()
    say('B + ' + told(changes.items()))
    if rnd.randrange(4) == 0:
        must('transaction_prepare_commit')
    if rnd.randrange(6) == 0:
        must('transaction_cancel')
        mine = before
        say('C')
    else:
        must('transaction_commit')
        say('A')

def reopen():
    global t
    lib.tdb_close(t)
    t = opened()

def walk(f, visit):
    # Whether it came to the end.
    if getattr(lib, 'tdb_' + f)(t, VISIT(visit), None) >= 0:
        return True
    # Somebody wanted all records just then, and the kernel found the deadlock. Or somebody died in
    # a commit: a read traverse may not undo that, the next operation will.
    if lib.tdb_error(t) not in (LOCK, RDONLY):
        fail('traverse: error %d' % lib.tdb_error(t))
    # The handle still has the lock of the record on which it stood, for ever.
    reopen()
    return False

def traverse():
    seen = {}
    def visit(t, k, v, _):
        k, v = bytes_of(k), bytes_of(v)
        if k.startswith(own_prefix):
            seen[k] = v
        elif k != b'counter' and not tears and not sound(v):
            fail('%r holds %r' % (k, v[:60]))
        return 0
    if walk('traverse_read', visit) and seen != mine:
        fail('own records differ: %r' % [(k, v[:12]) for k, v in set(seen.items()) ^ set(mine.items())])

def traverse_and_change(i):
    missed, torn = set(mine), []
    def visit(_t, k, v, _):
        k, v = bytes_of(k), bytes_of(v)
        if not k.startswith(own_prefix):
            return 0
        if mine.get(k) != v:
            fail('a traverse sees %r: %r' % (k, v[:60]))
        missed.discard(k)
        if not plain or rnd.randrange(6):
            return 0
        n = None if rnd.randrange(2) else value(i)
        say('B ' + told([(k, n)]))
        if (lib.tdb_delete(t, d(k)) if n is None else lib.tdb_store(t, d(k), d(n), 0)) != 0:
            # The deadlock again.
            if lib.tdb_error(t) != LOCK:
                fail('change in a traverse: error %d' % lib.tdb_error(t))
            torn.append((k, n))
            return 1
        if n is None:
            del mine[k]
        else:
            mine[k] = n
        say('A')
        return 0
    ended = walk('traverse', visit)
    if torn:
        if ended:
            reopen()
        (k, n), = torn
        found = get(k)
        if found == n or found is None:
            # A store that was broken off has deleted what was there.
            if found != n:
                say('C')
                say('B ' + told([(k, None)]))
            say('A')
            if found is None:
                mine.pop(k, None)
            else:
                mine[k] = found
        elif found == mine.get(k):
            say('C')
        else:
            fail('%r holds %r after a change that failed' % (k, found[:60]))
    elif ended and missed:
        fail('not seen: %r' % missed)

def chain_locked(i):
    k = b'shared-%d' % rnd.randrange(10)
    if rnd.randrange(2):
        must('chainlock_read', d(k))
        if get(k) != get(k):
            fail('%r changed under a lock' % k)
        must('chainunlock_read', d(k))
    elif tears:
        k, v = own(), value(i)
        must('chainlock', d(k))
        say('B ' + told([(k, v)]))
        change(k, 'store', v)
        must('chainunlock', d(k))
        say('A')
    elif plain:
        must('chainlock', d(b'counter'))
        say('B +')
        count()
        must('chainunlock', d(b'counter'))
        say('A')

def all_locked(i):
    if rnd.randrange(3) == 0 and plain:
        if lib.tdb_lockall(t) != 0:
            return
        if tears:
            # A count that is cut off would not be our own loss alone.
            plainly(i)
            must('unlockall')
        else:
            say('B +')
            count()
            must('unlockall')
            say('A')
        return
    if lib.tdb_lockall_read(t) != 0:
        return
    if get(b'left') != get(b'right'):
        fail('half a commit')
    must('unlockall_read')

def shared(i):
    k, x = b'shared-%d' % rnd.randrange(10), rnd.randrange(8)
    if x < 3 and plain:
        store(k, value(i))
    elif x == 3 and plain:
        if lib.tdb_delete(t, d(k)) != 0 and lib.tdb_error(t) != NOEXIST:
            fail('delete of %r: error %d' % (k, lib.tdb_error(t)))
    elif x == 4 and tears:
        v = value(i)
        must('append', d(k), d(v))
    else:
        v = get(k)
        if v is not None and not tears and not sound(v):
            fail('%r holds %r' % (k, v[:60]))

stop = os.path.splitext(path)[0] + '.stop'
say('ready')
i = 0
while i < ops if ops else not os.path.exists(stop):
    i += 1
    x = rnd.randrange(100)
    if x < 45 and plain:
        plainly(i)
    elif x < 20 or 75 <= x < 85:
        transaction(i)
    elif 45 <= x < 60:
        k = own()
        if get(k) != mine.get(k):
            fail('get of %r' % k)
    elif 60 <= x < 75:
        shared(i)
    elif 85 <= x < 95 and not mutexes:
        # With mutexes libtdb's traverse and its own commit wait for each other for ever: the commit
        # for the record on which the traverse stands, the traverse for the chain.
        if x < 89:
            traverse()
        elif x < 91:
            traverse_and_change(i)
        else:
            all_locked(i)
    elif 95 <= x < 98:
        chain_locked(i)
    elif x == 98:
        reopen()
say('done')
lib.tdb_close(t)
