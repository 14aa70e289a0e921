//! What the documentation of the engine must say.

use std::path::Path;

/// Modules whose functions work on a file. The others are pure.
const MODULES: [&str; 10] = [
    "check",
    "dump",
    "freezer",
    "handle",
    "locking",
    "open",
    "read",
    "transaction",
    "waiter",
    "write",
];

/// Every public function that can fail says which locks it holds, how it fails and what it costs.
#[test]
fn locks_errors_and_cost_are_told() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for module in MODULES {
        let text = std::fs::read_to_string(src.join(module).with_extension("rs")).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let mut docs = Vec::new();
        let mut lines = text.lines().map(str::trim);
        while let Some(line) = lines.next() {
            if line.starts_with("///") {
                docs.push(line);
                continue;
            }
            if line.starts_with("#[") {
                continue;
            }
            if line.starts_with("pub fn ") {
                let mut signature = line.to_owned();
                while !signature.ends_with('{') {
                    signature += lines.next().expect("a body");
                }
                let pure = signature.contains("io::Result");
                if signature.contains("Result<") && !pure {
                    seen += 1;
                    for word in ["* Locks: ", "* Errors: ", "* Cost: "] {
                        assert!(
                            docs.iter().any(|doc| doc.contains(word)),
                            "{module}: {line}: its documentation lacks `{word}`"
                        );
                    }
                }
            }
            docs.clear();
        }
    }
    assert!(seen > 40, "{seen}");
}
