//! The cipher: an object's bytes under a key of their own, and that key under a data key.
//!
//! ```text
//! envelope  version 1 | wrapped key | nonce 12 | ciphertext and tag      under the object's key
//! wrapped   data key's id 8 | nonce 12 | key 32 | tag 16                 under the data key
//! ```
//!
//! AES-256-GCM both times, bound to where the object lies: an envelope moved to another name does not open. Chance comes
//! as an argument.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use skein_net::ca::{DataKey, DataKeyId};

const VERSION: u8 = 1;
const KEY_LEN: usize = 32;
const ID_LEN: usize = 8;
/// The length of a wrapped key.
const WRAPPED_LEN: usize = ID_LEN + NONCE_LEN + KEY_LEN + 16;

/// The key of one object, drawn anew each time it is sealed.
pub(crate) type ObjectKey = [u8; KEY_LEN];

/// What does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Another format, or no envelope at all.
    #[error("it is not sealed in a way that this build knows")]
    Form,
    /// The tag does not fit: another key, another place, or bytes that were changed.
    #[error("it was changed, or belongs elsewhere")]
    Authentic,
}

/// `key` for `object`, readable by who has `data_key`.
pub(crate) fn wrap(data_key: &DataKey, object: &str, key: &ObjectKey, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
    let sealed = seal_by(data_key.bytes(), object, key.to_vec(), nonce);
    [&data_key.id().0[..], &nonce, &sealed].concat()
}

/// The key that was [wrapped](wrap), if one of these data keys opens it.
pub(crate) fn unwrap(
    data_keys: &[DataKey],
    object: &str,
    wrapped: &[u8],
) -> Option<Result<ObjectKey, Error>> {
    let Some(id) = data_key_of(wrapped) else { return Some(Err(Error::Form)) };
    let data_key = data_keys.iter().find(|key| key.id() == id)?;
    let opened = open_by(data_key.bytes(), object, &wrapped[ID_LEN..]);
    Some(opened.and_then(|key| ObjectKey::try_from(key).map_err(|_| Error::Form)))
}

/// By which data key a key is wrapped.
pub(crate) fn data_key_of(wrapped: &[u8]) -> Option<DataKeyId> {
    let (id, _) = wrapped.split_first_chunk::<ID_LEN>()?;
    (wrapped.len() == WRAPPED_LEN).then_some(DataKeyId(*id))
}

/// An envelope around `bytes`.
pub(crate) fn seal(
    object: &str,
    key: &ObjectKey,
    wrapped: &[u8],
    bytes: Vec<u8>,
    nonce: [u8; NONCE_LEN],
) -> Vec<u8> {
    let sealed = seal_by(key, object, bytes, nonce);
    [&[VERSION], wrapped, &nonce, &sealed].concat()
}

/// The wrapped key in an envelope.
pub(crate) fn wrapped(envelope: &[u8]) -> Result<&[u8], Error> {
    split(envelope).map(|(wrapped, _)| wrapped)
}

/// What is in an envelope.
pub(crate) fn open(object: &str, key: &ObjectKey, envelope: &[u8]) -> Result<Vec<u8>, Error> {
    open_by(key, object, split(envelope)?.1)
}

fn split(envelope: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let (&VERSION, rest) = envelope.split_first().ok_or(Error::Form)? else { return Err(Error::Form) };
    rest.split_at_checked(WRAPPED_LEN).ok_or(Error::Form)
}

fn seal_by(key: &[u8; KEY_LEN], object: &str, mut bytes: Vec<u8>, nonce: [u8; NONCE_LEN]) -> Vec<u8> {
    let (nonce, place) = (Nonce::assume_unique_for_key(nonce), Aad::from(object.as_bytes()));
    cipher(key)
        .seal_in_place_append_tag(nonce, place, &mut bytes)
        .expect("far below the length that AES-GCM can seal");
    bytes
}

fn open_by(key: &[u8; KEY_LEN], object: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(Error::Form)?;
    let (nonce, place) = (Nonce::assume_unique_for_key(*nonce), Aad::from(object.as_bytes()));
    let mut bytes = sealed.to_vec();
    let length = cipher(key).open_in_place(nonce, place, &mut bytes).map_err(|_| Error::Authentic)?.len();
    bytes.truncate(length);
    Ok(bytes)
}

fn cipher(key: &[u8; KEY_LEN]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are a key of AES-256"))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use skein_net::ca::ClusterCa;

    use super::*;

    const PLACE: &str = "core/secrets/default/db";

    fn data_key() -> DataKey {
        ClusterCa::create("home", SystemTime::now()).unwrap().data_key()
    }

    #[test]
    fn an_envelope_opens_by_its_data_key_in_its_place_and_as_it_was_made() {
        let (mine, other, key) = (data_key(), data_key(), [7; 32]);
        let wrapped_key = wrap(&mine, PLACE, &key, [1; 12]);
        let envelope = seal(PLACE, &key, &wrapped_key, b"hunter2".to_vec(), [2; 12]);
        assert_eq!(wrapped(&envelope), Ok(&wrapped_key[..]));
        assert_eq!(data_key_of(&wrapped_key), Some(mine.id()));
        assert_eq!(unwrap(&[other.clone(), mine.clone()], PLACE, &wrapped_key), Some(Ok(key)));
        assert_eq!(open(PLACE, &key, &envelope).unwrap(), b"hunter2");
        assert!(!envelope.windows(7).any(|window| window == b"hunter2"));

        assert_eq!(unwrap(&[other], PLACE, &wrapped_key), None);
        assert_eq!(
            unwrap(std::slice::from_ref(&mine), "core/secrets/default/dc", &wrapped_key),
            Some(Err(Error::Authentic))
        );
        assert_eq!(open("core/secrets/default/dc", &key, &envelope), Err(Error::Authentic));
        for at in 1 + WRAPPED_LEN..envelope.len() {
            let mut changed = envelope.clone();
            changed[at] ^= 1;
            assert_eq!(open(PLACE, &key, &changed), Err(Error::Authentic), "{at}");
        }
        for bytes in [&b""[..], b"\x01", b"\x02", &envelope[..WRAPPED_LEN]] {
            assert_eq!(wrapped(bytes), Err(Error::Form));
        }
        assert_eq!(unwrap(&[mine], PLACE, &wrapped_key[1..]), Some(Err(Error::Form)));
    }
}
