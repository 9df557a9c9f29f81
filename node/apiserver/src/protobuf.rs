//! Bodies in protobuf, as the same value that JSON would have given.
//!
//! Typed clients in Go send `application/vnd.kubernetes.protobuf` by default in their newer versions
//! (`kubectl create configmap` is one), and do not try JSON when that is refused. Answers are JSON all
//! the same: every client that sends protobuf accepts it.
//!
//! A body is four bytes of magic and an envelope with the object's kind and its bytes. What the bytes
//! mean is in `protobuf/schema.txt`; fields that are not there are skipped, as protobuf wants it.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};
use skein_api::limits::BODY_NODES_MAX;
use skein_api::status::Status;
use skein_api::time;

/// What a body says it is.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";

/// The object in a body, with `apiVersion` and `kind`.
pub(crate) fn decode(body: &[u8]) -> Result<Value, Status> {
    decode_envelope(body).map_err(|error| {
        Status::bad_request(format!("cannot read the body of the request as {MEDIA_TYPE}: {error}"))
    })
}

/// The bytes are not what they should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
enum Error {
    #[error("it does not begin with k8s and a zero byte")]
    Magic,
    #[error("it ends in the middle of a field")]
    Cut,
    #[error("it has a number of more than 64 bits")]
    Varint,
    #[error("field {0} has a form that its type cannot have")]
    Form(u32),
    #[error("field {0:?} is no UTF-8")]
    Text(&'static str),
    #[error("kind {0:?} is not known here")]
    Kind(String),
    #[error("its content has another encoding than protobuf: {0:?}")]
    Encoding(String),
    #[error("it has more than {BODY_NODES_MAX} fields and elements")]
    TooMuch,
}

/// Messages by name.
type Schema = BTreeMap<&'static str, Vec<Field>>;

struct Field {
    number: u32,
    /// `None`: its fields stand in JSON where it would be.
    name: Option<&'static str>,
    shape: Shape,
    type_: Type,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shape {
    /// Always sent: empty means absent.
    Plain,
    /// Sent if it is set.
    Optional,
    List,
    Map,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Type {
    Text,
    Int,
    Bool,
    Bytes,
    Quantity,
    Time,
    MicroTime,
    IntOrText,
    /// JSON as bytes: nothing served here has it.
    Opaque,
    Message(&'static str),
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| parse(include_str!("protobuf/schema.txt")));

fn parse(text: &'static str) -> Schema {
    let mut schema = Schema::new();
    let mut message = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(name), None, None) => message = name,
            (Some(number), Some(name), Some(type_)) => {
                let (shape, type_) = match type_.split_at(1) {
                    ("?", rest) => (Shape::Optional, rest),
                    ("*", rest) => (Shape::List, rest),
                    ("%", rest) => (Shape::Map, rest),
                    _ => (Shape::Plain, type_),
                };
                let number = number.parse().expect("the schema's fields begin with a number");
                let name = (name != ".").then_some(name);
                schema.entry(message).or_default().push(Field {
                    number,
                    name,
                    shape,
                    type_: Type::named(type_),
                });
            }
            _ => {}
        }
    }
    schema
}

impl Type {
    fn named(name: &'static str) -> Self {
        match name {
            "string" => Type::Text,
            "int" => Type::Int,
            "bool" => Type::Bool,
            "bytes" => Type::Bytes,
            "Quantity" => Type::Quantity,
            "Time" => Type::Time,
            "MicroTime" => Type::MicroTime,
            "IntOrString" => Type::IntOrText,
            "FieldsV1" | "Raw" => Type::Opaque,
            message => Type::Message(message),
        }
    }
}

fn decode_envelope(body: &[u8]) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Reader(envelope) {
        match field? {
            (1, Wire::Bytes(type_meta)) => {
                for field in Reader(type_meta) {
                    match field? {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes, "apiVersion")?.to_owned(),
                        (2, Wire::Bytes(bytes)) => kind = text(bytes, "kind")?.to_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3 | 4, Wire::Bytes(encoding)) if !encoding.is_empty() && encoding != MEDIA_TYPE.as_bytes() => {
                return Err(Error::Encoding(String::from_utf8_lossy(encoding).into_owned()));
            }
            _ => {}
        }
    }
    let (message, _) = SCHEMA.get_key_value(kind.as_str()).ok_or_else(|| Error::Kind(kind.clone()))?;
    let mut object = Map::new();
    Decoder { left: BODY_NODES_MAX }.message(message, raw, &mut object)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

/// Counts what it makes: few bytes can be many values.
struct Decoder {
    left: usize,
}

impl Decoder {
    fn message(
        &mut self,
        name: &'static str,
        bytes: &[u8],
        into: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        // The schema names no message that it does not have: a test says so.
        let fields = SCHEMA.get(name).map_or(&[][..], Vec::as_slice);
        for found in Reader(bytes) {
            let (number, wire) = found?;
            let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
            self.left = self.left.checked_sub(1).ok_or(Error::TooMuch)?;
            self.field(field, wire, into)?;
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, wire: Wire<'_>, into: &mut Map<String, Value>) -> Result<(), Error> {
        let Some(name) = field.name else {
            return match (field.type_, wire) {
                (Type::Message(message), Wire::Bytes(bytes)) => self.message(message, bytes, into),
                _ => Err(Error::Form(field.number)),
            };
        };
        match field.shape {
            Shape::Map => {
                let (key, value) = self.entry(field, name, wire)?;
                if let Some(entries) = slot(into, name, || Value::Object(Map::new())).as_object_mut() {
                    entries.insert(key, value);
                }
            }
            Shape::List => {
                let value = self.value(field, name, wire)?;
                if let Some(elements) = slot(into, name, || Value::Array(Vec::new())).as_array_mut() {
                    elements.push(value);
                }
            }
            Shape::Optional | Shape::Plain => {
                let value = self.value(field, name, wire)?;
                if !value.is_null() && (field.shape == Shape::Optional || !is_empty(&value)) {
                    into.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, field: &Field, name: &'static str, wire: Wire<'_>) -> Result<(String, Value), Error> {
        let Wire::Bytes(bytes) = wire else { return Err(Error::Form(field.number)) };
        // Key and value may be left out when they are empty.
        let (mut key, mut value) = (String::new(), self.value(field, name, Wire::Bytes(&[]))?);
        for found in Reader(bytes) {
            match found? {
                (1, Wire::Bytes(bytes)) => key = text(bytes, name)?.to_owned(),
                (2, wire) => value = self.value(field, name, wire)?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    /// Null for a moment that is not set.
    fn value(&mut self, field: &Field, name: &'static str, wire: Wire<'_>) -> Result<Value, Error> {
        Ok(match (field.type_, wire) {
            (Type::Int, Wire::Number(number)) => number.cast_signed().into(),
            (Type::Bool, Wire::Number(number)) => (number != 0).into(),
            (Type::Text, Wire::Bytes(bytes)) => text(bytes, name)?.into(),
            (Type::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
            (Type::Quantity, Wire::Bytes(bytes)) => quantity(bytes, name)?,
            (Type::Time, Wire::Bytes(bytes)) => moment(bytes)?.map(time::rfc3339).into(),
            (Type::MicroTime, Wire::Bytes(bytes)) => moment(bytes)?.map(time::rfc3339_micro).into(),
            (Type::IntOrText, Wire::Bytes(bytes)) => int_or_text(bytes, name)?,
            (Type::Opaque, Wire::Bytes(_)) => Value::Null,
            (Type::Message(message), Wire::Bytes(bytes)) => {
                let mut fields = Map::new();
                self.message(message, bytes, &mut fields)?;
                Value::Object(fields)
            }
            _ => return Err(Error::Form(field.number)),
        })
    }
}

/// A quantity travels as its text.
fn quantity(bytes: &[u8], name: &'static str) -> Result<Value, Error> {
    let mut quantity = "0";
    for field in Reader(bytes) {
        if let (1, Wire::Bytes(bytes)) = field? {
            quantity = text(bytes, name)?;
        }
    }
    Ok(quantity.into())
}

/// Seconds and nanoseconds; nothing at all is no moment.
fn moment(bytes: &[u8]) -> Result<Option<Timestamp>, Error> {
    let (mut seconds, mut nanos) = (None, 0);
    for field in Reader(bytes) {
        match field? {
            (1, Wire::Number(number)) => seconds = Some(number.cast_signed()),
            (2, Wire::Number(number)) => nanos = i32::try_from(number).unwrap_or(0),
            _ => {}
        }
    }
    Ok(seconds.and_then(|seconds| Timestamp::new(seconds, nanos).ok()))
}

/// A type, a number, a text; the type says which of the two counts.
fn int_or_text(bytes: &[u8], name: &'static str) -> Result<Value, Error> {
    let (mut is_text, mut number, mut word) = (false, 0, "");
    for field in Reader(bytes) {
        match field? {
            (1, Wire::Number(type_)) => is_text = type_ != 0,
            (2, Wire::Number(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => word = text(bytes, name)?,
            _ => {}
        }
    }
    Ok(if is_text { word.into() } else { number.into() })
}

fn slot<'a>(into: &'a mut Map<String, Value>, name: &str, empty: impl FnOnce() -> Value) -> &'a mut Value {
    into.entry(name).or_insert_with(empty)
}

fn text<'a>(bytes: &'a [u8], name: &'static str) -> Result<&'a str, Error> {
    std::str::from_utf8(bytes).map_err(|_| Error::Text(name))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A field as it travels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a fixed length, which no type here has.
    Fixed,
}

/// The fields of a message, one after another. Ends with the first error.
struct Reader<'a>(&'a [u8]);

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Wire<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Reader<'a> {
    fn field(&mut self) -> Result<(u32, Wire<'a>), Error> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Error::Varint)?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed)?,
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(usize::try_from(length).map_err(|_| Error::Cut)?)?)
            }
            5 => self.take(4).map(|_| Wire::Fixed)?,
            _ => return Err(Error::Form(number)),
        };
        Ok((number, wire))
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return Err(Error::Cut) };
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Varint)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Error::Cut)?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use skein_api::kinds::KINDS;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        field.extend_from_slice(content);
        field
    }

    fn number(number: u8, value: u8) -> Vec<u8> {
        vec![number << 3, value]
    }

    fn body(api_version: &str, kind: &str, object: &[Vec<u8>]) -> Vec<u8> {
        let type_meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &type_meta), bytes(2, &object.concat()), bytes(3, b""), bytes(4, b"")]
            .concat()
    }

    #[test]
    fn the_schema_has_every_served_kind_and_every_message_it_names() {
        for kind in KINDS.iter().filter(|kind| kind.verbs.contains(&"create")) {
            assert!(SCHEMA.contains_key(kind.kind), "{kind:?}");
        }
        for (message, fields) in SCHEMA.iter() {
            for field in fields {
                if let Type::Message(named) = field.type_ {
                    assert!(SCHEMA.contains_key(named), "{message} names {named}");
                }
            }
        }
    }

    #[test]
    fn a_config_map_reads_as_its_json_would() {
        let metadata = [bytes(1, b"settings"), bytes(2, b""), bytes(8, b"")].concat();
        let entry = [bytes(1, b"a"), bytes(2, b"1")].concat();
        let binary = [bytes(1, b"b"), bytes(2, &[0, 255])].concat();
        let object = [bytes(1, &metadata), bytes(2, &entry), bytes(3, &binary), number(4, 0)];
        assert_eq!(
            decode(&body("v1", "ConfigMap", &object)).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" },
                "data": { "a": "1" }, "binaryData": { "b": "AP8=" }, "immutable": false,
            })
        );
    }

    #[test]
    fn what_is_set_to_zero_is_told_from_what_is_not_set() {
        let spec = [number(1, 0), number(5, 0)].concat();
        let scaled = decode(&body("apps/v1", "Deployment", &[bytes(2, &spec)])).unwrap();
        assert_eq!(scaled["spec"], json!({ "replicas": 0 }), "minReadySeconds is always sent");
    }

    #[test]
    fn numbers_names_and_moments_take_their_form_of_json() {
        let port = |target: Vec<u8>| bytes(1, &[number(3, 80), bytes(4, &target)].concat());
        let service = |target| decode(&body("v1", "Service", &[bytes(2, &port(target))])).unwrap();
        assert_eq!(service([number(1, 0), number(2, 81)].concat())["spec"]["ports"][0]["targetPort"], 81);
        assert_eq!(
            service([number(1, 1), bytes(3, b"web")].concat())["spec"]["ports"][0]["targetPort"],
            "web"
        );
        let lease =
            decode(&body("coordination.k8s.io/v1", "Lease", &[bytes(2, &bytes(4, &number(1, 1)))])).unwrap();
        assert_eq!(lease["spec"]["renewTime"], "1970-01-01T00:00:01.000000Z");
    }

    #[test]
    fn what_stands_inline_in_json_is_put_there() {
        // A volume's source is a message of its own on the wire.
        let volume = [bytes(1, b"scratch"), bytes(2, &bytes(2, b""))].concat();
        let pod = decode(&body("v1", "Pod", &[bytes(2, &bytes(1, &volume))])).unwrap();
        assert_eq!(pod["spec"]["volumes"][0], json!({ "name": "scratch", "emptyDir": {} }));
    }

    #[test]
    fn bytes_that_are_cut_or_wrong_are_refused_without_panic() {
        let whole = body("v1", "ConfigMap", &[bytes(1, &bytes(1, b"settings"))]);
        for end in 0..whole.len() {
            let _ = decode(&whole[..end]);
            for flip in [0x01, 0x80, 0xff] {
                let mut flipped = whole.clone();
                flipped[end] ^= flip;
                let _ = decode(&flipped);
            }
        }
        for wrong in [&b"{}"[..], b"k8s\0", b"", &body("v1", "Unicorn", &[])] {
            assert_eq!(decode(wrong).unwrap_err().code(), 400);
        }
        // A few bytes each, and values of many times that size.
        let many = bytes(1, &bytes(14, b"")).repeat(BODY_NODES_MAX);
        let mut envelope = [MAGIC.to_vec(), bytes(1, &bytes(2, b"Pod"))].concat();
        envelope.push(2 << 3 | 2);
        let mut length = many.len();
        while length >= 0x80 {
            envelope.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        envelope.push(length as u8);
        envelope.extend(many);
        assert!(decode(&envelope).unwrap_err().message().contains("more than"));
    }
}
