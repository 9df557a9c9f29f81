//! Values to bytes and back: the only place that knows how.
//!
//! One byte says which encoding follows, so that the encoding can be replaced while old files are
//! still around. Inside lies bincode, which does not describe itself: a type that is encoded is
//! frozen, and grows only by new variants at the end of an enum.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No value is larger: a frame of the wire holds 8 MiB, a command 3 MiB.
pub const VALUE_BYTES_MAX: usize = 16 << 20;

const BINCODE_2: u8 = 1;

// Counts every claimed length against the limit *before* anything is allocated for it.
const CONFIG: Configuration<LittleEndian, Varint, Limit<VALUE_BYTES_MAX>> =
    bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();

/// Bytes that are no value of the expected type. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// There is not even a format byte.
    #[error("the value is empty; its sender or its file is damaged")]
    Empty,
    /// A newer build wrote it.
    #[error(
        "the value has encoding {found}, this build reads {BINCODE_2}; start the newer build that wrote it"
    )]
    NewerEncoding {
        /// The format byte found.
        found: u8,
    },
    /// More bytes than any honest value has.
    #[error(
        "the value has {found} bytes, at most {VALUE_BYTES_MAX} are allowed; its sender or its file is damaged"
    )]
    TooLarge {
        /// Length of the value.
        found: usize,
    },
    /// The bytes end early, claim lengths that are not there, or hold an unknown variant.
    #[error("the value could not be decoded; it was written by a newer build or is damaged")]
    Malformed(#[source] bincode::error::DecodeError),
    /// A value, and then something else.
    #[error(
        "the value is followed by {extra} unexpected bytes; it was written by a newer build or is damaged"
    )]
    Trailing {
        /// How many bytes are left over.
        extra: usize,
    },
}

/// Encodes `value` with its format byte in front.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    encode_into(value, &mut bytes);
    bytes
}

/// Appends what [`encode`] returns to `bytes`.
pub fn encode_into<T: Serialize>(value: &T, bytes: &mut Vec<u8>) {
    bytes.push(BINCODE_2);
    bincode::serde::encode_into_std_write(value, bytes, CONFIG)
        .expect("our own types serialize, and a Vec takes every byte");
}

/// Decodes a value that fills `bytes` to the last one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(DecodeError::TooLarge { found: bytes.len() });
    }
    let (&format, rest) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if format != BINCODE_2 {
        return Err(DecodeError::NewerEncoding { found: format });
    }
    let (value, used) = bincode::serde::decode_from_slice(rest, CONFIG).map_err(DecodeError::Malformed)?;
    match rest.len() - used {
        0 => Ok(value),
        extra => Err(DecodeError::Trailing { extra }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_the_round_trip() {
        let value = (7_u64, String::from("seven"), vec![1_u8, 2, 3]);
        assert_eq!(decode::<(u64, String, Vec<u8>)>(&encode(&value)).unwrap(), value);
    }

    #[test]
    fn a_newer_encoding_is_named_and_refused() {
        let refused = decode::<u8>(&[2, 0]).unwrap_err();
        assert!(matches!(refused, DecodeError::NewerEncoding { found: 2 }), "{refused}");
    }

    #[test]
    fn a_claimed_length_allocates_nothing_that_is_not_there() {
        // A Vec<u64> that says it has 2^60 elements.
        let mut bytes = vec![BINCODE_2, 253];
        bytes.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        assert!(matches!(decode::<Vec<u64>>(&bytes), Err(DecodeError::Malformed(_))));
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let mut bytes = encode(&1_u8);
        bytes.push(0);
        assert!(matches!(decode::<u8>(&bytes), Err(DecodeError::Trailing { extra: 1 })));
    }
}
