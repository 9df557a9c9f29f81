//! The one place that knows how values become bytes: a version byte, then bincode.
//!
//! bincode does not describe itself, so the version byte is what lets a later build read older bytes
//! and refuse newer ones by name.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// No value of this module's users is larger; a hostile length inside the bytes cannot ask for more.
const DECODED_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("no bytes")]
    Empty,
    #[error("version {found}, this build reads version {known}; use the build that wrote it or a newer one")]
    Version { found: u8, known: u8 },
    #[error("malformed")]
    Malformed(#[source] bincode::error::DecodeError),
    #[error("{0} bytes after the end")]
    Trailing(usize),
}

/// The bytes of `value`, led by `version`.
pub(crate) fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = vec![version];
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .expect("types encoded here have no unsupported shape, and a Vec takes every write");
    bytes
}

/// The value in `bytes`, all of them, if they are led by `version`.
pub(crate) fn decode<T: DeserializeOwned>(version: u8, bytes: &[u8]) -> Result<T, DecodeError> {
    let (&found, body) = bytes.split_first().ok_or(DecodeError::Empty)?;
    if found != version {
        return Err(DecodeError::Version { found, known: version });
    }
    let config = bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();
    let (value, read) = bincode::serde::decode_from_slice(body, config).map_err(DecodeError::Malformed)?;
    if read < body.len() {
        return Err(DecodeError::Trailing(body.len() - read));
    }
    Ok(value)
}

/// An error with its sources, in one line.
pub(crate) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
