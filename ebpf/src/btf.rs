//! The types of the running kernel (BTF), as far as offsets of members and numbers of functions
//! go. Pure but for reading the file.

use std::fs;

/// The kernel's own, uncompressed since 5.4.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
/// Types within types that are followed: more than any socket has.
const DEPTH: u32 = 16;

const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// Where a type stands in the data.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    kind: u32,
    members: usize,
    bitfields: bool,
}

pub(crate) struct Btf {
    data: Vec<u8>,
    strings: usize,
    types: Vec<Type>,
}

impl Btf {
    /// Of the running kernel; the error says what is wrong with it.
    pub(crate) fn of_kernel() -> Result<Self, String> {
        let data = fs::read(VMLINUX).map_err(|error| format!("reading {VMLINUX}: {error}"))?;
        Self::parse(data).ok_or_else(|| format!("{VMLINUX} is not BTF of a known form"))
    }

    pub(crate) fn parse(data: Vec<u8>) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?));
        if u16::from_ne_bytes(*data.first_chunk()?) != MAGIC {
            return None;
        }
        let header = word(4)? as usize;
        let (types_at, types_len) = (header + word(8)? as usize, word(12)? as usize);
        let strings = header + word(16)? as usize;
        // Type 0 is `void`.
        let mut types = vec![Type {
            at: 0,
            kind: 0,
            members: 0,
            bitfields: false,
        }];
        let mut at = types_at;
        while at < types_at + types_len {
            let info = word(at + 4)?;
            let kind = info >> 24 & 0x1f;
            let members = (info & 0xffff) as usize;
            types.push(Type {
                at,
                kind,
                members,
                bitfields: info >> 31 != 0,
            });
            at += 12
                + match kind {
                    INT | VAR | DECL_TAG => 4,
                    ARRAY => 12,
                    STRUCT | UNION | DATASEC | ENUM64 => 12 * members,
                    ENUM | FUNC_PROTO => 8 * members,
                    _ => 0,
                };
        }
        Some(Self {
            data,
            strings,
            types,
        })
    }

    fn word(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.data.get(at..)?.first_chunk()?))
    }

    fn named(&self, kind: u32, name: &str) -> Option<usize> {
        let called = |found: &Type| {
            let at = self.strings + self.word(found.at)? as usize;
            name_at(&self.data, at)
        };
        self.types
            .iter()
            .position(|found| found.kind == kind && called(found) == Some(name.as_bytes()))
    }

    /// Bytes from the start of a `struct` to a member, through members within members
    /// (`__sk_common.skc_net.net`) and those without name. None if it is not there, or a bit field.
    pub(crate) fn offset(&self, of: &str, path: &str) -> Option<u32> {
        let mut id = self.named(STRUCT, of)?;
        let mut bits = 0;
        for name in path.split('.') {
            let (within, member) = self.member(id, name.as_bytes(), DEPTH)?;
            bits += within;
            id = member;
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    /// Bits to a member of a struct or union, and its type.
    fn member(&self, id: usize, name: &[u8], depth: u32) -> Option<(u32, usize)> {
        let found = *self.types.get(id)?;
        let depth = depth.checked_sub(1)?;
        match found.kind {
            STRUCT | UNION => {}
            TYPEDEF | VOLATILE | CONST => {
                return self.member(self.word(found.at + 8)? as usize, name, depth);
            }
            _ => return None,
        }
        for index in 0..found.members {
            let at = found.at + 12 + 12 * index;
            let (called, kind) = (self.word(at)? as usize, self.word(at + 4)? as usize);
            let mut bits = self.word(at + 8)?;
            let mut is_field = false;
            if found.bitfields {
                is_field = bits >> 24 != 0;
                bits &= 0xff_ffff;
            }
            let called = name_at(&self.data, self.strings + called)?;
            if called == name {
                return (!is_field).then_some((bits, kind));
            }
            if called.is_empty()
                && let Some((within, member)) = self.member(kind, name, depth)
            {
                return Some((bits + within, member));
            }
        }
        None
    }

    /// The number of a kernel function.
    pub(crate) fn function(&self, name: &str) -> Option<u32> {
        self.named(FUNC, name).map(|id| id as u32)
    }
}

fn name_at(data: &[u8], at: usize) -> Option<&[u8]> {
    let rest = data.get(at..)?;
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Maker {
        types: Vec<u8>,
        strings: Vec<u8>,
    }

    impl Maker {
        fn name(&mut self, name: &str) -> u32 {
            let at = self.strings.len() as u32;
            self.strings.extend(name.as_bytes());
            self.strings.push(0);
            at
        }

        fn words(&mut self, words: &[u32]) {
            self.types
                .extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        }

        fn finish(self) -> Vec<u8> {
            let mut data = MAGIC.to_ne_bytes().to_vec();
            data.extend([1, 0]);
            let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
            for word in [24, 0, types, types, strings] {
                data.extend(u32::to_ne_bytes(word));
            }
            data.extend(self.types);
            data.extend(self.strings);
            data
        }
    }

    fn made() -> Vec<u8> {
        let mut maker = Maker {
            types: Vec::new(),
            strings: vec![0],
        };
        let [int, inner, outer, a, b, c, flag, destroy, named] = [
            "int", "inner", "outer", "a", "b", "c", "flag", "destroy", "inner_t",
        ]
        .map(|name| maker.name(name));
        // 1: int
        maker.words(&[int, INT << 24, 4, 32]);
        // 2: struct inner { int a; int b; }
        maker.words(&[inner, STRUCT << 24 | 2, 8, a, 1, 0, b, 1, 32]);
        // 3: union { int c; struct inner; } without name
        maker.words(&[0, UNION << 24 | 1, 4, c, 1, 0]);
        // 4: struct outer { int flag : 3; inner_t inner; union {}; }
        maker.words(&[outer, 1 << 31 | STRUCT << 24 | 3, 24]);
        maker.words(&[flag, 1, 3 << 24, inner, 6, 64, 0, 3, 128]);
        // 5: a function
        maker.words(&[destroy, FUNC << 24, 0]);
        // 6: typedef struct inner inner_t
        maker.words(&[named, TYPEDEF << 24, 2]);
        maker.finish()
    }

    #[test]
    fn offsets_through_members_with_and_without_name() {
        let btf = Btf::parse(made()).unwrap();
        assert_eq!(btf.offset("inner", "b"), Some(4));
        assert_eq!(btf.offset("outer", "inner"), Some(8));
        assert_eq!(btf.offset("outer", "inner.b"), Some(12));
        assert_eq!(btf.offset("outer", "c"), Some(16));
        assert_eq!(btf.offset("outer", "flag"), None, "a bit field");
        assert_eq!(btf.offset("outer", "d"), None);
        assert_eq!(btf.offset("other", "a"), None);
        assert_eq!(btf.function("destroy"), Some(5));
        assert_eq!(btf.function("create"), None);
    }

    #[test]
    fn damaged_data_is_refused_and_not_followed() {
        let good = made();
        assert!(Btf::parse(Vec::new()).is_none());
        for length in 0..good.len() {
            if let Some(btf) = Btf::parse(good[..length].to_vec()) {
                let _ = btf.offset("outer", "c");
            }
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            if let Some(btf) = Btf::parse(bad) {
                let _ = btf.offset("outer", "inner.b");
            }
        }
    }
}
