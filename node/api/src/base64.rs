//! Bytes as texts, read as leniently as other servers of this API read them.
//!
//! Manifests hold bytes in blocks with line ends, and encoders exist that leave bits of the last letter set. Both
//! mean the same bytes, and what is kept is written one way.

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::engine::{DecodePaddingMode, Engine};
use serde::{Deserialize, Deserializer};

/// The text is not base64.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("illegal base64 data at input byte {at}")]
pub struct Illegal {
    at: usize,
}

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
const PADDED: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const PADDED_OR_NOT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    LENIENT.with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes that a field of an object means.
pub fn decode(text: &str) -> Result<Vec<u8>, Illegal> {
    decode_by(&PADDED, text)
}

/// The text for these bytes that is kept.
pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Bytes in a file of credentials, whose writers may leave out the padding: for `#[serde(deserialize_with)]`.
pub fn of_credentials<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<u8>>, D::Error> {
    let text = Option::<String>::deserialize(input)?;
    text.map(|text| decode_by(&PADDED_OR_NOT, &text)).transpose().map_err(serde::de::Error::custom)
}

fn decode_by(engine: &impl Engine, text: &str) -> Result<Vec<u8>, Illegal> {
    use base64::DecodeError::{InvalidByte, InvalidLastSymbol, InvalidLength, InvalidPadding};
    let is_kept = |byte: &u8| !matches!(byte, b'\r' | b'\n');
    let kept: Vec<u8> = text.bytes().filter(is_kept).collect();
    engine.decode(&kept).map_err(|error| {
        let at = match error {
            InvalidByte(at, _) | InvalidLastSymbol(at, _) => at,
            InvalidLength(length) => length - length % 4,
            InvalidPadding => kept.len().saturating_sub(1) / 4 * 4,
        };
        let mut places = text.bytes().enumerate().filter(|(_, byte)| is_kept(byte)).map(|(place, _)| place);
        Illegal { at: places.nth(at).unwrap_or(text.len()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_and_bits_behind_the_last_byte_mean_nothing() {
        for text in
            ["aGVsbG8gd29ybGQh", "aGVsbG8g\nd29ybGQh\n", "aGVs\r\nbG8gd2\n9ybGQh", "\naGVsbG8gd29ybGQh"]
        {
            assert_eq!(decode(text).unwrap(), b"hello world!", "{text:?}");
        }
        for (text, bytes) in
            [("YQ==", "a"), ("YR==", "a"), ("YW\nI=\n", "ab"), ("YWJ=", "ab"), ("", ""), ("\n", "")]
        {
            assert_eq!(decode(text).unwrap(), bytes.as_bytes(), "{text:?}");
        }
        assert_eq!(encode(&decode("YR==").unwrap()), "YQ==");
    }

    /// The places are those that Go names.
    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, at) in [("!!!!", 0), ("aGVs\nb-8g", 6), ("YQ", 0), ("aGVsYQ=", 4), ("aGVs YQ==", 4)] {
            assert_eq!(decode(text), Err(Illegal { at }), "{text:?}");
        }
        assert_eq!(decode("YQ").unwrap_err().to_string(), "illegal base64 data at input byte 0");
    }
}
