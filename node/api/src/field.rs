//! What is wrong with a field, in Kubernetes' words: `spec.containers[0].name: Required value`.

use std::fmt;

use crate::limits::FIELD_ERRORS_MAX;

/// One field of an object and what is wrong with it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FieldError {
    /// The field's path: `spec.containers[0].name`.
    pub path: String,
    /// What is wrong.
    pub fault: Fault,
    /// More words; may be empty.
    pub detail: String,
}

/// What can be wrong with a field. The text is the offending value as it is quoted in the message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// It is missing.
    Required,
    /// Its value is malformed or not allowed here.
    Invalid(String),
    /// Its value is none of a fixed set.
    NotSupported(String),
    /// It may not be set, or not changed, here.
    Forbidden,
    /// Another element of the list has this value.
    Duplicate(String),
    /// What it names does not exist.
    NotFound(String),
    /// Its value is too long.
    TooLong,
    /// It has too many elements.
    TooMany(String),
}

impl Fault {
    /// The machine's word for it, in a Status' causes.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid(_) => "FieldValueInvalid",
            Self::NotSupported(_) => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate(_) => "FieldValueDuplicate",
            Self::NotFound(_) => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany(_) => "FieldValueTooMany",
        }
    }
}

impl FieldError {
    /// The message without the path: `Required value: must name an image`.
    pub fn body(&self) -> String {
        let head = match &self.fault {
            Fault::Required => "Required value".to_owned(),
            Fault::Invalid(value) => format!("Invalid value: {value}"),
            Fault::NotSupported(value) => format!("Unsupported value: {value}"),
            Fault::Forbidden => "Forbidden".to_owned(),
            Fault::Duplicate(value) => format!("Duplicate value: {value}"),
            Fault::NotFound(value) => format!("Not found: {value}"),
            Fault::TooLong => "Too long".to_owned(),
            Fault::TooMany(value) => format!("Too many: {value}"),
        };
        if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A field's path while rules walk through an object.
#[derive(Clone, Debug)]
pub struct Path(String);

impl Path {
    /// A field at the top of the object.
    pub fn new(field: &str) -> Self {
        Self(field.to_owned())
    }

    /// The field below this one.
    pub fn child(&self, field: &str) -> Self {
        Self(if self.0.is_empty() { field.to_owned() } else { format!("{}.{field}", self.0) })
    }

    /// The list's element.
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The map's entry.
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything wrong with an object, collected so that a user hears it all at once.
#[derive(Debug, Default)]
pub struct Errors(Vec<FieldError>);

impl Errors {
    /// Adds one, up to the bound.
    pub fn push(&mut self, path: &Path, fault: Fault, detail: impl Into<String>) {
        if self.0.len() < FIELD_ERRORS_MAX {
            self.0.push(FieldError { path: path.to_string(), fault, detail: detail.into() });
        }
    }

    /// The field is missing.
    pub fn required(&mut self, path: &Path, detail: &str) {
        self.push(path, Fault::Required, detail);
    }

    /// The value is malformed or not allowed.
    pub fn invalid(&mut self, path: &Path, value: impl fmt::Debug, detail: impl Into<String>) {
        self.push(path, Fault::Invalid(shortened(&value)), detail);
    }

    /// The value is none of `supported`.
    pub fn not_supported(&mut self, path: &Path, value: &str, supported: &[&str]) {
        let supported: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let detail = format!("supported values: {}", supported.join(", "));
        self.push(path, Fault::NotSupported(shortened(&value)), detail);
    }

    /// The field may not be set or changed.
    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.push(path, Fault::Forbidden, detail);
    }

    /// The value was there before.
    pub fn duplicate(&mut self, path: &Path, value: impl fmt::Debug) {
        self.push(path, Fault::Duplicate(shortened(&value)), "");
    }

    /// What the field names does not exist.
    pub fn not_found(&mut self, path: &Path, value: impl fmt::Debug) {
        self.push(path, Fault::NotFound(shortened(&value)), "");
    }

    /// The value has more than `max` bytes.
    pub fn too_long(&mut self, path: &Path, max: usize) {
        self.push(path, Fault::TooLong, format!("may not be more than {max} bytes"));
    }

    /// The list has more than `max` elements.
    pub fn too_many(&mut self, path: &Path, found: usize, max: usize) {
        self.push(path, Fault::TooMany(found.to_string()), format!("must have at most {max} items"));
    }

    /// Nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was collected.
    pub fn into_inner(self) -> Vec<FieldError> {
        self.0
    }
}

/// The value as it is quoted, cut so that a message never grows with a hostile value.
fn shortened(value: &impl fmt::Debug) -> String {
    const CHARS_MAX: usize = 512;
    let text = format!("{value:?}");
    match text.char_indices().nth(CHARS_MAX) {
        Some((at, _)) => format!("{}..", &text[..at]),
        None => text,
    }
}
