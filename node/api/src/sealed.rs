//! What of a Secret is sealed, and how the sealed object looks.
//!
//! In the map a Secret is a Secret whose only entry is [`ENTRY`], a key that no user can give: an envelope around its
//! data and its annotations, which repeat the data where `kubectl apply` wrote them. All else stays readable, so
//! planners, selectors and deletions need no key. What an envelope is made of is not known here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::base64;

/// The start of the keys of all objects that are sealed.
pub const PREFIX: &str = "core/secrets/";
/// The key of the envelope in `data`.
pub const ENTRY: &str = "/sealed";

const VERSION: u8 = 1;

/// Bytes that are not what [`take`] gave.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("what was sealed in it is of another form; this build may be too old")]
pub struct Malformed;

/// Whether objects at this key are sealed.
pub fn is_due(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// The envelope of a sealed object.
pub fn envelope(object: &Value) -> Option<Vec<u8>> {
    let text = object.get("data")?.as_object()?.get(ENTRY)?.as_str()?;
    base64::decode(text).ok()
}

/// Takes out of an object what is to be sealed.
///
/// Values go in as the bytes that they mean: in an envelope, which is written as text once more, a large Secret is
/// as long as before.
pub fn take(object: &mut Value) -> Vec<u8> {
    let data = object.as_object_mut().and_then(|object| object.remove("data"));
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    let annotations = metadata.and_then(|metadata| metadata.remove("annotations"));
    let values = data.as_ref().and_then(bytes_of);
    // What is not plain bytes is kept as it was written.
    let odd = data.as_ref().filter(|_| values.is_none());
    let rest = json!({ "annotations": annotations, "data": odd, "values": values.is_some() });
    let mut out = vec![VERSION];
    put(&mut out, rest.to_string().as_bytes());
    for (key, value) in values.iter().flatten() {
        put(&mut out, key.as_bytes());
        put(&mut out, value);
    }
    out
}

/// Puts the envelope in the place of what [`take`] took.
pub fn put_envelope(object: &mut Value, envelope: &[u8]) {
    object["data"] = json!({ ENTRY: base64::encode(envelope) });
}

/// Puts back what [`take`] took: the object is as it was, but for what was changed of it while it was sealed.
pub fn restore(object: &mut Value, taken: &[u8]) -> Result<(), Malformed> {
    let (&VERSION, mut taken) = taken.split_first().ok_or(Malformed)? else { return Err(Malformed) };
    let rest: Value = serde_json::from_slice(next(&mut taken)?).map_err(|_| Malformed)?;
    let mut values = Map::new();
    while !taken.is_empty() {
        let key = std::str::from_utf8(next(&mut taken)?).map_err(|_| Malformed)?;
        values.insert(key.to_owned(), base64::encode(next(&mut taken)?).into());
    }
    remove_data(object);
    let fields = object.as_object_mut().ok_or(Malformed)?;
    match &rest["data"] {
        _ if rest["values"] == true => {
            fields.insert("data".into(), values.into());
        }
        Value::Null => {}
        data => {
            fields.insert("data".into(), data.clone());
        }
    }
    if let Value::Object(mut annotations) = rest["annotations"].clone() {
        let metadata = fields.get_mut("metadata").and_then(Value::as_object_mut).ok_or(Malformed)?;
        if let Some(Value::Object(later)) = metadata.remove("annotations") {
            annotations.extend(later);
        }
        metadata.insert("annotations".into(), annotations.into());
    }
    Ok(())
}

/// Takes away the values of an object that is sealed or not: what is shown of one that is gone.
pub fn remove_data(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        object.remove("data");
    }
}

/// The bytes of all values, if each is text as this API writes it.
fn bytes_of(data: &Value) -> Option<BTreeMap<&str, Vec<u8>>> {
    let bytes = data.as_object()?.iter().map(|(key, value)| {
        let text = value.as_str()?;
        let bytes = base64::decode(text).ok()?;
        (base64::encode(&bytes) == text).then_some((key.as_str(), bytes))
    });
    bytes.collect()
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("objects are far smaller");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn next<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let (length, behind) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (bytes, behind) = behind.split_at_checked(length).ok_or(Malformed)?;
    *rest = behind;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::DATA_BYTES_MAX;

    fn sealed_and_back(object: &Value) -> (Value, Value) {
        let mut sealed = object.clone();
        let taken = take(&mut sealed);
        put_envelope(&mut sealed, &taken);
        let mut back = sealed.clone();
        restore(&mut back, &envelope(&sealed).unwrap()).unwrap();
        (sealed, back)
    }

    fn secret(data: Value) -> Value {
        let annotations =
            json!({ "kubectl.kubernetes.io/last-applied-configuration": "{\"data\":\"aHVudGVyMg==\"}" });
        let metadata = json!({ "name": "db", "labels": { "app": "web" }, "annotations": annotations });
        json!({ "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data })
    }

    #[test]
    fn an_object_comes_back_as_it_was_and_no_value_is_readable_meanwhile() {
        let all =
            [json!({ "password": "aHVudGVyMg==", "empty": "" }), json!({}), json!({ "odd": "aHVudGVyMh==" })];
        for data in all {
            let object = secret(data);
            let (sealed, back) = sealed_and_back(&object);
            assert_eq!(back, object);
            assert!(!sealed.to_string().contains("aHVudGVy"), "{sealed}");
            assert_eq!(
                (&sealed["metadata"]["labels"], &sealed["type"]),
                (&object["metadata"]["labels"], &object["type"])
            );
        }
        let bare = json!({ "metadata": { "name": "bare" } });
        assert_eq!(sealed_and_back(&bare).1, bare);
        assert_eq!(envelope(&bare), None);
    }

    #[test]
    fn what_was_changed_while_it_was_sealed_stays_changed() {
        let (mut sealed, _) = sealed_and_back(&secret(json!({ "a": "YQ==" })));
        sealed["metadata"]["finalizers"] = json!(["x/y"]);
        sealed["metadata"]["annotations"] = json!({ "new": "1" });
        let taken = envelope(&sealed).unwrap();
        restore(&mut sealed, &taken).unwrap();
        assert_eq!(sealed["metadata"]["finalizers"], json!(["x/y"]));
        assert_eq!(sealed["metadata"]["annotations"].as_object().unwrap().len(), 2);
    }

    #[test]
    fn a_secret_of_the_largest_size_does_not_grow() {
        let object = secret(json!({ "blob": base64::encode(&vec![0xa5; DATA_BYTES_MAX]) }));
        let (sealed, back) = sealed_and_back(&object);
        assert_eq!(back, object);
        assert!(sealed.to_string().len() < object.to_string().len() + 256);
    }

    #[test]
    fn other_bytes_are_refused() {
        let mut object = secret(json!({ "a": "YQ==" }));
        let taken = take(&mut object);
        assert_eq!(restore(&mut object, &taken[..taken.len() - 1]), Err(Malformed));
        for bytes in [&b""[..], b"\x02", b"\x01", b"\x01\0\0\0\x09{}", b"\x01\0\0\0\x02{}\0"] {
            assert_eq!(restore(&mut object, bytes), Err(Malformed), "{bytes:?}");
        }
    }
}
