//! From a request's body to an object: syntax, kind, unknown and duplicate fields, size.

use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::kinds::Kind;
use crate::limits::{BODY_NODES_MAX, REQUEST_BYTES_MAX};
use crate::rules::WrongType;
use crate::status::Status;

/// How a body is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
}

/// What happens to fields that the kind does not have: the query parameter `fieldValidation`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Validation {
    /// They are dropped in silence.
    Ignore,
    /// They are dropped and each is a warning: what upstream does when nothing is said.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

impl FromStr for Validation {
    type Err = Status;

    fn from_str(text: &str) -> Result<Self, Status> {
        match text {
            "Ignore" => Ok(Self::Ignore),
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            other => Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// An object of its kind, without fields that the kind does not have.
#[derive(Debug)]
pub struct Decoded {
    /// The object. It is not defaulted or validated yet.
    pub object: Value,
    /// What the answer's `Warning` headers should say.
    pub warnings: Vec<String>,
}

/// Reads the body of a create or an update.
///
/// `apiVersion` and `kind` may be left out, since the path says them, but must be right where given.
pub fn decode(kind: &Kind, body: &[u8], format: Format, validation: Validation) -> Result<Decoded, Status> {
    let Parsed { value, duplicates } = parse(body, format)?;
    shape(kind, value, duplicates, validation)
}

/// A parsed body of no particular kind.
#[derive(Debug)]
pub struct Parsed {
    /// What it says; of a field given twice, the last.
    pub value: Value,
    /// The paths of fields given twice.
    pub duplicates: Vec<String>,
}

/// Reads any body within the bounds: a patch, delete options, an object.
pub fn parse(body: &[u8], format: Format) -> Result<Parsed, Status> {
    if body.len() > REQUEST_BYTES_MAX {
        return Err(Status::too_large("the request", REQUEST_BYTES_MAX));
    }
    let mut reading = Reading::default();
    let seed = Node { reading: &mut reading };
    let value = match format {
        Format::Json => {
            let mut input = serde_json::Deserializer::from_slice(body);
            seed.deserialize(&mut input)
                .and_then(|value| input.end().map(|()| value))
                .map_err(|error| error.to_string())
        }
        Format::Yaml => {
            seed.deserialize(serde_norway::Deserializer::from_slice(body)).map_err(|error| error.to_string())
        }
    };
    match value {
        Ok(value) => Ok(Parsed { value, duplicates: reading.duplicates }),
        Err(why) => Err(Status::bad_request(format!("cannot read the body of the request: {why}"))),
    }
}

/// Makes an object of the kind from any value: what was parsed, or the outcome of a patch.
///
/// `duplicates` are the paths that [`parse`] found.
pub fn shape(
    kind: &Kind,
    mut value: Value,
    duplicates: Vec<String>,
    validation: Validation,
) -> Result<Decoded, Status> {
    name_kind(kind, &mut value)?;
    normalise(&mut value);
    let mut strict: Vec<String> = Vec::new();
    let mut object = (kind.rules.shape)(value, &mut |path| strict.push(format!("unknown field {path:?}")))
        .map_err(|error| unreadable(kind, &error))?;
    prune(&mut object);
    strict.extend(duplicates.iter().map(|path| format!("duplicate field {path:?}")));
    match validation {
        Validation::Ignore => Ok(Decoded { object, warnings: Vec::new() }),
        Validation::Warn => Ok(Decoded { object, warnings: strict }),
        Validation::Strict if strict.is_empty() => Ok(Decoded { object, warnings: strict }),
        Validation::Strict => Err(Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            kind.kind,
            kind.version,
            kind.kind,
            strict.join(", ")
        ))),
    }
}

/// Fills in `apiVersion` and `kind`, or refuses those of another kind.
fn name_kind(kind: &Kind, value: &mut Value) -> Result<(), Status> {
    let Value::Object(fields) = value else {
        return Err(Status::bad_request(format!(
            "the body of the request is not a {}: it is no object",
            kind.kind
        )));
    };
    for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
        match fields.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::String(found)) if *found == expected || found.is_empty() => {}
            Some(found) => {
                let what = if field == "kind" { "kind" } else { "API version" };
                return Err(Status::bad_request(format!(
                    "the {what} in the data ({}) does not match the expected {what} ({expected})",
                    found.as_str().unwrap_or("no text")
                )));
            }
        }
        fields.insert(field.into(), Value::String(expected));
    }
    Ok(())
}

/// Brings what Kubernetes accepts in several forms into the one form of our types:
/// `null` means absent, and a quantity may be a bare number.
pub(crate) fn normalise(value: &mut Value) {
    const OF_QUANTITIES: &[&str] =
        &["limits", "requests", "capacity", "allocatable", "overhead", "allocatedResources"];
    const QUANTITIES: &[&str] = &["sizeLimit", "divisor"];
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(normalise),
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            for (field, value) in fields.iter_mut() {
                match value {
                    Value::Number(number) if QUANTITIES.contains(&field.as_str()) => {
                        *value = Value::String(number.to_string());
                    }
                    Value::Object(quantities) if OF_QUANTITIES.contains(&field.as_str()) => {
                        for quantity in quantities.values_mut() {
                            if let Value::Number(number) = quantity {
                                *quantity = Value::String(number.to_string());
                            }
                        }
                        normalise(value);
                    }
                    _ => normalise(value),
                }
            }
        }
        _ => {}
    }
}

/// Takes away empty lists, which mean the same as absent ones.
///
/// Not before the fields are known: an unknown field is named also when it holds an empty list.
pub(crate) fn prune(value: &mut Value) {
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(prune),
        Value::Object(fields) => {
            fields.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
            fields.values_mut().for_each(prune);
        }
        _ => {}
    }
}

/// A field's value has the wrong type.
pub(crate) fn unreadable(kind: &Kind, error: &WrongType) -> Status {
    Status::bad_request(format!(
        "{} in version {:?} cannot be handled as a {}: {error}",
        kind.kind, kind.version, kind.kind
    ))
}

/// The path in Kubernetes' notation: `spec.containers[0].image`.
pub(crate) fn dotted(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", dotted(parent)),
        Path::Map { parent, key } => {
            let parent = dotted(parent);
            if parent.is_empty() { key.clone() } else { format!("{parent}.{key}") }
        }
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            dotted(parent)
        }
    }
}

/// What is kept while a body is read.
#[derive(Default)]
struct Reading {
    path: Vec<Step>,
    duplicates: Vec<String>,
    nodes: usize,
}

enum Step {
    Field(String),
    Index(usize),
}

impl Reading {
    fn dotted(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) if text.is_empty() => text.push_str(name),
                Step::Field(name) => {
                    text.push('.');
                    text.push_str(name);
                }
                Step::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        text
    }
}

/// Reads one value, and notes fields given twice, which a plain `Value` forgets.
struct Node<'r> {
    reading: &'r mut Reading,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        self.reading.nodes += 1;
        if self.reading.nodes > BODY_NODES_MAX {
            return Err(D::Error::custom(format!("it has more than {BODY_NODES_MAX} fields and elements")));
        }
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut input: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        loop {
            self.reading.path.push(Step::Index(elements.len()));
            let element = input.next_element_seed(Node { reading: self.reading })?;
            self.reading.path.pop();
            match element {
                Some(element) => elements.push(element),
                None => return Ok(Value::Array(elements)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = input.next_key::<String>()? {
            self.reading.path.push(Step::Field(name.clone()));
            let value = input.next_value_seed(Node { reading: self.reading })?;
            if fields.insert(name, value).is_some() {
                let path = self.reading.dotted();
                self.reading.duplicates.push(path);
            }
            self.reading.path.pop();
        }
        Ok(Value::Object(fields))
    }
}
