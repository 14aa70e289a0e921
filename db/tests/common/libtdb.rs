//! libtdb itself, as the other side of the engine's tests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use ctdb_db::OpenFlags;

/// The interpreter that Debian's python3-tdb belongs to.
const PYTHON: &str = "/usr/bin/python3";

/// libtdb behind a pipe: one command a line, one answer a line.
const SERVER: &str = r"
import sys, os, tdb
path, flags, hash_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
t = tdb.Tdb(path, hash_size, flags, os.O_RDWR | os.O_CREAT, 0o600)
b = bytes.fromhex
print('ready', flush=True)
for line in sys.stdin:
    w = line.rstrip('\n').split(' ')
    try:
        r = 'ok'
        if w[0] == 'put': t.store(b(w[1]), b(w[2]))
        elif w[0] == 'del':
            try: t.delete(b(w[1]))
            except RuntimeError: r = 'none'
        elif w[0] == 'app': t.append(b(w[1]), b(w[2]))
        elif w[0] == 'get':
            v = t.get(b(w[1]))
            r = 'none' if v is None else 'data ' + v.hex()
        elif w[0] == 'wipe': t.clear()
        elif w[0] == 'begin': t.transaction_start()
        elif w[0] == 'commit': t.transaction_commit()
        elif w[0] == 'cancel': t.transaction_cancel()
        elif w[0] == 'repack': t.repack()
        elif w[0] == 'lockall': t.lock_all()
        elif w[0] == 'unlockall': t.unlock_all()
        elif w[0] == 'readlockall': t.read_lock_all()
        elif w[0] == 'readunlockall': t.read_unlock_all()
        elif w[0] == 'seqnum': r = str(t.seqnum)
        elif w[0] == 'all': r = ' '.join(['all'] + [k.hex() + '=' + t[k].hex() for k in t])
        elif w[0] == 'hammer':
            # own keys, many stores and deletes; prints what must be there at the end
            import random
            rnd = random.Random(int(w[2])); mine = {}
            for i in range(int(w[3])):
                k = ('%s%d' % (w[1], rnd.randrange(30))).encode()
                x = rnd.randrange(4)
                if x == 0:
                    try: t.delete(k); ok = True
                    except RuntimeError: ok = False
                    assert ok == (k in mine), k
                    mine.pop(k, None)
                elif x == 1 and i % 16 == 1:
                    t.transaction_start()
                    t.store(k, b'%d' % i); mine[k] = b'%d' % i
                    t.transaction_commit()
                else:
                    v = bytes([65 + i % 26]) * rnd.randrange(400)
                    t.store(k, v); mine[k] = v
                assert t.get(k) == mine.get(k), k
            r = ' '.join(['all'] + [k.hex() + '=' + v.hex() for k, v in mine.items()])
        elif w[0] == 'pairs':
            i = 0
            while True:
                i += 1
                t.transaction_start()
                t.store(b'left', b'%d' % i * (i % 50 + 1))
                t.store(b'right', b'%d' % i * (i % 50 + 1))
                t.transaction_commit()
                print(i, flush=True)
        print(r, flush=True)
    except Exception as e:
        print('error', repr(e), flush=True)
";

/// A process that has one file open with libtdb.
pub struct Libtdb {
    pub child: Child,
    pub input: ChildStdin,
    pub output: BufReader<ChildStdout>,
}

impl Libtdb {
    pub fn open(path: &Path, flags: OpenFlags, hash_size: u32) -> Self {
        let mut child = Command::new(PYTHON)
            .args(["-c", SERVER])
            .arg(path)
            .args([flags.bits().to_string(), hash_size.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs /usr/bin/python3");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self {
            child,
            input,
            output,
        };
        assert_eq!(
            this.answer(),
            "ready",
            "this test needs the package python3-tdb"
        );
        this
    }

    pub fn send(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.send(line);
        let answer = self.answer();
        assert!(
            !answer.starts_with("error"),
            "libtdb on {line:.80}: {answer}"
        );
        answer
    }
}

impl Drop for Libtdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
