//! Fields: a reader that never reads past its end, and values that write themselves.

/// Why bytes are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end within a field, or a length or count reaches past their end.
    #[error("{missing} bytes are missing at the end")]
    Short {
        /// How many, at least.
        missing: u64,
    },
    /// Bytes follow where nothing should.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A text without its NUL.
    #[error("a text does not end in NUL")]
    NoTerminator,
    /// An address family that is neither IPv4 nor IPv6.
    #[error("address family {0} is unknown")]
    Family(u16),
    /// A length that contradicts another one.
    #[error("lengths contradict each other")]
    Length,
    /// Not our protocol.
    #[error("wrong magic or version")]
    Protocol,
    /// A number that names nothing.
    #[error("{0} is not in use")]
    Unknown(u32),
}

/// Reads fields from the front of its bytes.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What has not been read.
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else {
            return Err(DecodeError::Short {
                missing: (count - self.0.len()) as u64,
            });
        };
        self.0 = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((taken, rest)) = self.0.split_first_chunk::<N>() else {
            return Err(DecodeError::Short {
                missing: (N - self.0.len()) as u64,
            });
        };
        self.0 = rest;
        Ok(*taken)
    }

    /// One value.
    pub fn value<T: Decode<'a>>(&mut self) -> Result<T, DecodeError> {
        T::decode(self)
    }

    /// A u32 length and as many bytes (blobn).
    pub fn blob(&mut self) -> Result<&'a [u8], DecodeError> {
        let length: u32 = self.value()?;
        self.take(length as usize)
    }

    /// `count` values of at least `least` bytes each; refused before allocation if they cannot be
    /// there.
    pub fn list<T: Decode<'a>>(&mut self, count: u32, least: usize) -> Result<Vec<T>, DecodeError> {
        let needed = u64::from(count) * least as u64;
        if needed > self.0.len() as u64 {
            return Err(DecodeError::Short {
                missing: needed - self.0.len() as u64,
            });
        }
        (0..count).map(|_| self.value()).collect()
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing(self.0.len()))
        }
    }
}

/// A value with a place on the wire.
pub trait Encode {
    /// Appends it.
    fn encode(&self, out: &mut Vec<u8>);
}

/// A value that can be read.
pub trait Decode<'a>: Sized {
    /// Reads it.
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;
}

/// Reads a value that fills all bytes.
pub fn decode_all<'a, T: Decode<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    let mut reader = Reader::new(bytes);
    let value = reader.value()?;
    reader.end()?;
    Ok(value)
}

/// A value on its own.
pub fn encode_to_vec(value: &impl Encode) -> Vec<u8> {
    let mut out = Vec::new();
    value.encode(&mut out);
    out
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl Encode for $number {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_ne_bytes());
            }
        }
        impl Decode<'_> for $number {
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                reader.array().map(Self::from_ne_bytes)
            }
        }
    )*};
}
numbers!(u8 u16 u32 i32 u64 i64 f64);

/// Arrays of numbers, element after element.
impl<T: Encode, const N: usize> Encode for [T; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        for element in self {
            element.encode(out);
        }
    }
}

impl<'a, T: Decode<'a> + Copy + Default, const N: usize> Decode<'a> for [T; N] {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let mut array = [T::default(); N];
        for element in &mut array {
            *element = reader.value()?;
        }
        Ok(array)
    }
}

impl<T: Encode> Encode for Box<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        (**self).encode(out);
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Box<T> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        reader.value().map(Self::new)
    }
}

/// u32 length and bytes (blobn).
pub fn put_blob(bytes: &[u8], out: &mut Vec<u8>) {
    (bytes.len() as u32).encode(out);
    out.extend_from_slice(bytes);
}

/// u32 count and the values.
pub fn put_list<T: Encode>(list: &[T], out: &mut Vec<u8>) {
    (list.len() as u32).encode(out);
    for value in list {
        value.encode(out);
    }
}

/// Appends `count` zero bytes.
pub fn pad(count: usize, out: &mut Vec<u8>) {
    out.resize(out.len() + count, 0);
}

/// A structure of fields in wire order; `=> pad N` behind a field is a hole of the C structure,
/// written as zero and ignored when read.
macro_rules! wire_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* pub $field:ident : $kind:ty $(=> pad $pad:literal)?,)*
        }
    ) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[$field_meta])* pub $field: $kind,)*
        }
        impl $crate::client::codec::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $(
                    $crate::client::codec::Encode::encode(&self.$field, out);
                    $($crate::client::codec::pad($pad, out);)?
                )*
            }
        }
        impl $crate::client::codec::Decode<'_> for $name {
            fn decode(
                reader: &mut $crate::client::codec::Reader<'_>,
            ) -> Result<Self, $crate::client::codec::DecodeError> {
                Ok(Self {
                    $($field: {
                        let value = reader.value()?;
                        $(reader.take($pad)?;)?
                        value
                    },)*
                })
            }
        }
    };
}
pub(crate) use wire_struct;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_cannot_be_there_allocates_nothing() {
        let mut reader = Reader::new(&[0; 16]);
        assert_eq!(
            reader.list::<u64>(u32::MAX, 8),
            Err(DecodeError::Short {
                missing: u64::from(u32::MAX) * 8 - 16
            })
        );
        assert_eq!(reader.list::<u64>(2, 8), Ok(vec![0, 0]));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn what_is_missing_and_what_is_left_is_said() {
        assert_eq!(
            decode_all::<u32>(&[1, 2, 3]),
            Err(DecodeError::Short { missing: 1 })
        );
        assert_eq!(decode_all::<u32>(&[0; 6]), Err(DecodeError::Trailing(2)));
        assert_eq!(
            Reader::new(&[9, 0, 0, 0, 1]).blob(),
            Err(DecodeError::Short { missing: 8 })
        );
    }
}
